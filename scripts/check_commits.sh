#!/usr/bin/env bash
# Check the subjects of new commits: `area: subject`, at most 72 characters, no full stop at the end.
# CONTRIBUTING.md, "Commits", is the rule; whether the subject is an imperative is left to the reader.
# usage: bash scripts/check_commits.sh [BASE]
#   BASE   check the commits after this one; without it, those after the commit that added this script
# In a shallow clone it checks the commits that are there, and says so.
set -euo pipefail
longest=72

fail() {
    echo "error: check_commits.sh: $1" >&2
    exit 2
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -e .git ]; then
    echo "check_commits.sh: this folder is not a git checkout, so there are no commits to check"
    exit 0
fi
# git says itself why it cannot read the checkout, for example that it belongs to another user.
git rev-parse --git-dir >/dev/null || fail "git cannot read this checkout"

base=${1:-}
if [ -z "$base" ]; then
    # In a shallow clone the oldest commit that is there counts as the one that adds every file.
    base=$(git log --diff-filter=A --format=%H -- scripts/check_commits.sh | tail -n 1)
    if [ -z "$base" ]; then
        echo "check_commits.sh: the script is not committed yet, so there are no new commits to check"
        exit 0
    fi
fi
git rev-parse --quiet --verify "$base^{commit}" >/dev/null ||
    fail "$base: no such commit; give one of this clone, or fetch more of its history"

wrong=0 checked=0
while IFS=$'\t' read -r hash subject; do
    [ -n "$hash" ] || continue
    checked=$((checked + 1))
    reason=
    # The subjects that `git revert` writes.
    [[ $subject != 'Revert "'* ]] || continue
    if [ "${#subject}" -gt "$longest" ]; then
        reason="has ${#subject} characters, at most $longest are allowed"
    elif ! [[ $subject =~ ^[a-zA-Z0-9_./,-]+(\ [a-zA-Z0-9_./,-]+){0,2}:\ [^\ ] ]]; then
        reason="does not have the form 'area: imperative subject'"
    elif [[ $subject == *. ]]; then
        reason="ends with a full stop"
    fi
    if [ -n "$reason" ]; then
        echo "${hash:0:9} '$subject': $reason" >&2
        wrong=$((wrong + 1))
    fi
done < <(git log --no-merges --format='%H%x09%s' "$base..HEAD")

note=
if [ "$(git rev-parse --is-shallow-repository)" = true ]; then
    note=" (this clone is shallow: only the commits that it has were checked)"
fi
if [ "$wrong" -gt 0 ]; then
    echo "error: $wrong of $checked commit subjects break the rule in CONTRIBUTING.md; reword them with git rebase$note" >&2
    exit 1
fi
echo "check_commits.sh: $checked new commits, all subjects in form$note"
