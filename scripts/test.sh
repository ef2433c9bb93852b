#!/usr/bin/env bash
# Set up, then lint, types and tests: what CI runs.
# usage: bash scripts/test.sh [--all] [--python PYTHON] [PYTEST ARGUMENTS]
#   --all       adds the long tests (more kills, more fuzz clips, the demo in full); the default run
#               has the same bounds with smaller counts
#   --python    name or path of another interpreter, for example python3.13, whose environment is
#               .venv-3.13
set -euo pipefail
select="not long" examples=same python=
while [ $# -gt 0 ]; do
    case $1 in
    --all) select="long or not long" examples=new ;;
    --python=*) python=${1#*=} ;;
    --python)
        if [ $# -eq 1 ]; then
            echo "error: --python: expected an interpreter, for example python3.13" >&2
            exit 2
        fi
        python=$2
        shift
        ;;
    *) break ;;
    esac
    shift
done
. "$(dirname "$0")/setup.sh" "[dev,ray]" "$python"
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy" --python-version "$version"
exec "$venv/bin/python" -m pytest -n "${TEST_WORKERS:-2}" --dist worksteal --durations=25 \
    -m "$select" --hypothesis-profile "$examples" "$@"
