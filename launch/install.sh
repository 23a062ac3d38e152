#!/usr/bin/env bash
# Install jaxcredit with the pinned versions of constraints.txt:
#   launch/install.sh tpu|gpu|cpu [FOLDER]     (a virtual environment, default ~/jaxcredit-venv)
# uv installs Python 3.11 where the machine's Python is older, as on TPU VM images (3.10).
set -euo pipefail
case ${1:-} in
  tpu) extra=tpu ;;
  gpu) extra=cuda ;;
  cpu) extra=data ;;
  *) echo "usage: launch/install.sh tpu|gpu|cpu [FOLDER]" >&2; exit 2 ;;
esac
venv=${2:-$HOME/jaxcredit-venv}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$HOME/.local/bin:$PATH
command -v uv >/dev/null || python3 -m pip install --quiet --user uv
[ -x "$venv/bin/python" ] || uv venv --quiet --python 3.11 "$venv"
uv pip install --quiet --python "$venv/bin/python" --constraint launch/constraints.txt -e ".[$extra,train,data,gcs,models]"
"$venv/bin/jaxcredit" --help >/dev/null
echo "installed: $venv"
