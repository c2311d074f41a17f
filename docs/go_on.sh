#!/bin/bash
# Start a run in a folder, or resume the one that is there: docs/go_on.sh <folder> [arguments of src/train.py]
set -euo pipefail
folder=$1
shift
if [ -f "$folder/checkpoint.safetensors" ]; then
  exec python src/train.py "$@" resume="$folder"
fi
exec python src/train.py "$@" hydra.run.dir="$folder"
