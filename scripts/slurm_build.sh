#!/usr/bin/env bash
# Build a pool as a Slurm array: task I of N builds part I/N, and a last job merges the parts.
# From the checkout:
#
#   options="--dataset kinetics400 --videos /data/k400 --out /data/pool"
#   id=$(sbatch --parsable --array=1-16 scripts/slurm_build.sh $options)
#   sbatch --dependency=afterok:"${id%%;*}" scripts/slurm_build.sh --merge $options
#
# All arguments are passed to preprocess/build_shards.py; --part comes from the array, --workers
# from --cpus-per-task. Other sbatch options go before the name of the script. A task that was
# stopped continues when it is submitted again. To submit only some tasks again, state the number of
# parts: NUM_PARTS=16 sbatch --array=3,7 scripts/slurm_build.sh ...
#
# NUM_PARTS    N; needed unless the array is 1-N or 0-(N-1) without gaps (task 0 is part N)
# BMPT_ROOT    the checkout; needed if jobs are not submitted from it
#SBATCH --job-name=bmpt-build
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
# A minute before the time limit, Slurm signals the process that this script becomes, which ends its
# workers and closes its files.
#SBATCH --signal=B:TERM@60
set -euo pipefail

fail() {
    echo "error: slurm_build.sh: $1" >&2
    exit 2
}

# Slurm runs a copy of this file from its spool folder, which contains nothing else.
root=${BMPT_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
if [ -z "${BMPT_ROOT:-}" ] && [ ! -f "$root/preprocess/build_shards.py" ]; then
    root=${SLURM_SUBMIT_DIR:-$PWD}
fi
build=$root/preprocess/build_shards.py
[ -f "$build" ] || fail "$build: no such file; submit from the checkout, or set BMPT_ROOT to it"
python=$root/.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}

merge=no has_workers=no
for word in "$@"; do
    case $word in
    --merge) merge=yes ;;
    --workers | --workers=*) has_workers=yes ;;
    --part | --part=*) fail "$word: parts come from the array; leave it out" ;;
    esac
done

task=${SLURM_ARRAY_TASK_ID:-}
if [ "$merge" = yes ]; then
    [ -z "$task" ] || fail "--merge is one job, not an array; submit it without --array"
else
    [ -n "$task" ] ||
        fail "SLURM_ARRAY_TASK_ID is not set; submit with sbatch --array=1-N, or give --merge"
    first=${SLURM_ARRAY_TASK_MIN:?} last=${SLURM_ARRAY_TASK_MAX:?} count=${SLURM_ARRAY_TASK_COUNT:?}
    parts=${NUM_PARTS:-}
    if [ -z "$parts" ]; then
        array="an array of $count tasks from $first to $last"
        [ "$first" -le 1 ] && [ $((last - first + 1)) -eq "$count" ] ||
            fail "$array is not all of 1-N; set NUM_PARTS to the N of the whole array"
        parts=$count
    fi
    case $parts in
    '' | 0* | *[!0-9]*) fail "NUM_PARTS=$parts: expected a whole number from 1 on" ;;
    esac
    [ "$task" -le "$parts" ] || fail "task $task is not in 0-$parts; NUM_PARTS is $parts"
    # 0 is part N, so that a task is the same part whether its array begins at 0 or at 1.
    set -- "$@" --part "$((task == 0 ? parts : task))/$parts"
fi
if [ "$has_workers" = no ] && [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    set -- "$@" --workers "$SLURM_CPUS_PER_TASK"
fi
echo "slurm_build.sh: $python $build $*" >&2
exec "$python" "$build" "$@"
