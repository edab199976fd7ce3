#!/usr/bin/env bash
# Everything that is to be measured on the day a GPU is there, in 20 minutes, as one JSON.
#
#   benchmarks/on_device.sh on_device.json                # on a machine with a GPU
#   benchmarks/on_device.sh on_device.json --rehearse     # the same parts on this CPU, with a tiny model
#   benchmarks/on_device.sh on_device.json --dry-run      # what would be run
#
# PYTHON names the Python (python3 if it is not set), which must have JAX for the GPU. A machine that no package can be
# fetched from: bring a folder of wheels and name it in WHEELS; what is in it is installed beside the machine's own
# packages, into a folder that is removed at the end. With PyTorch, transformers and PEFT the peers are measured too.
# More flags: python -m benchmarks.on_device --help
set -euo pipefail
out=$(realpath "${1:?the file that the results go to is missing, for example on_device.json}")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [[ -n ${WHEELS:-} ]]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" -m benchmarks.on_device --out="$out" "${@:2}"
