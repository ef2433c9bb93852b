#!/usr/bin/env bash
# Set up, then lint, types and tests: what CI runs. `--all` adds the long versions (more kills, more fuzz clips, the
# demo in full); no bound is lower without it, only counts. Further arguments go to pytest.
set -euo pipefail
. "$(dirname "$0")/setup.sh" "[dev,ray]"
select="not long"
examples=same
if [ "${1:-}" = "--all" ]; then
    select="long or not long"
    examples=new
    shift
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest -n "${TEST_WORKERS:-2}" --dist worksteal -m "$select" --hypothesis-profile "$examples" "$@"
