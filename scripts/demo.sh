#!/usr/bin/env bash
# Set up and run the demo: raw videos -> shards -> batches -> a prompt-tuned CLIP -> an accuracy.
# Needs Python 3.11 to 3.14 and pip; no FFmpeg, no GPU, no download of weights. Takes less than 5
# minutes on 2 cores.
set -euo pipefail
. "$(dirname "$0")/setup.sh" ""
exec .venv/bin/bmpt demo "$@"
