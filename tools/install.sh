#!/bin/sh
# tools/install.sh FOLDER EXTRAS [-c FILE]: make a virtual environment in FOLDER and install fedpara[EXTRAS] there.
# uv installs, which takes a fraction of pip's time; where uv cannot be had or fails, pip does.
# Without an NVIDIA GPU, torch is its CPU build.
set -eu
folder=$1 package=.${2:+[$2]} python=$1/bin/python
shift 2
export PIP_DISABLE_PIP_VERSION_CHECK=1

by_pip() { "$python" -m pip install -q "$@"; }
by_uv() { "$python" -m uv pip install -q --python "$python" "$@"; }

# $1: by_pip or by_uv; the others are constraints
everything() {
  by=$1
  shift
  if ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
    set -- "$@" -c constraints-cpu.txt
    # from pip's own sources if they have the CPU build, else from PyTorch's index, and nothing but torch from there
    "$by" --no-deps -c constraints-cpu.txt torch 2>"$folder/torch.log" ||
      "$by" --no-deps -c constraints-cpu.txt --index-url https://download.pytorch.org/whl/cpu torch ||
      { cat "$folder/torch.log" >&2; return 1; }
  fi
  "$by" "$@" -e "$package"
}

# uv does not read pip's settings: where pip looks besides PyPI, or instead of it
pips_places() {
  links=${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null | tr '\n' ' ')}
  index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
  # shellcheck disable=SC2086  # the words of a list
  [ -z "$links" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$(echo $links | tr ' ' ,)}"
  [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
}

"${PYTHON:-python3}" -c 'import sys
if sys.version_info < (3, 11): sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$folder"
pips_places
# if Python may not write bytecode, every process of the tests would compile the packages again
[ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || [ "$package" = . ] || export UV_COMPILE_BYTECODE=1
{ by_pip 'uv>=0.9,<1' && everything by_uv "$@"; } 2>"$folder/uv.log" || everything by_pip "$@"
