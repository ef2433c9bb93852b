# Sourced by demo.sh and test.sh: creates a virtual environment where it is missing and installs the
# project into it, again only after pyproject.toml or the constraints have changed.
# usage: . scripts/setup.sh EXTRAS [PYTHON]
#   EXTRAS   empty, or for example [dev]
#   PYTHON   name or path of an interpreter, whose environment is .venv-3.13 or similar; without it
#            the environment is .venv, which is created with $PYTHON, or else with python3
# It changes to the root of the checkout, and sets `venv`, the folder of the environment, and
# `version`, for example 3.13.
supported="3.11 to 3.14" # as requires-python in pyproject.toml

fail() {
    echo "error: $1" >&2
    exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${2:-${PYTHON:-python3}}
[ -n "${2:-}" ] || [ ! -x "$root/.venv/bin/python" ] || python=$root/.venv/bin/python

# An interpreter can exist and still not run: a pyenv shim of a version that is not selected.
describe='import sys; print("{}.{}".format(*sys.version_info[:2]), sys.executable)'
described=$("$python" -c "$describe" 2>/dev/null) ||
    fail "$python: no such interpreter, or it does not run; give name or path of Python $supported"
version=${described%% *}
case $version in
3.11 | 3.12 | 3.13 | 3.14) ;;
*) fail "$python: is Python $version; bmpt needs Python $supported" ;;
esac

cd "$root"
venv=.venv${2:+-$version}
[ -x "$venv/bin/python" ] || "${described#* }" -m venv "$venv"

wanted="$1 $(cat pyproject.toml scripts/constraints.txt | cksum)"
if [ "$(cat "$venv/installed$1" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into $venv ..." >&2
    "$venv/bin/python" -m pip install --quiet --constraint scripts/constraints.txt --editable ".$1"
    printf '%s\n' "$wanted" >"$venv/installed$1"
fi
