#!/usr/bin/env bash
# Writes constraints/pythonX.Y.txt: the newest versions of all that the tests install, for each Python they run on.
#
#   pip install uv && constraints/update.sh
#
# The tests are run against these versions; `pip install selfparam-jax` takes any that pyproject.toml allows.
set -euo pipefail
cd "$(dirname "$0")/.."

# A uv.toml or an index of this machine must not leave a trace in the files.
export UV_NO_CONFIG=1
for version in 3.11 3.12 3.13; do
  uv pip compile pyproject.toml --extra test --upgrade --quiet --no-annotate \
    --python-version "$version" --python-platform x86_64-manylinux_2_28 --no-emit-package selfparam-jax \
    --custom-compile-command constraints/update.sh --output-file "constraints/python$version.txt"
done
