#!/bin/bash
# Start a run in a folder, or go on with the one that lies there: docs/go_on.sh <folder> [what src/train.py takes]
set -euo pipefail
folder=$1
shift
if [ -f "$folder/checkpoint.safetensors" ]; then
  exec python src/train.py "$@" resume="$folder"
fi
exec python src/train.py "$@" hydra.run.dir="$folder"
