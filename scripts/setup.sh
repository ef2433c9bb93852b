# Sourced by demo.sh and test.sh: makes .venv if it is missing and installs the project into it, once a pyproject.toml.
# usage: . scripts/setup.sh EXTRAS      (EXTRAS: empty, or for example [dev])
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
wanted="$1 $(cksum <pyproject.toml)"
if [ "$(cat ".venv/installed$1" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into .venv ..." >&2
    .venv/bin/python -m pip install --quiet --editable ".$1"
    printf '%s\n' "$wanted" >".venv/installed$1"
fi
