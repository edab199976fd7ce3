#!/usr/bin/env bash
# Runs a job on a TPU slice of Google Kubernetes Engine, as the JobSet of launch/gke_jobset.yaml.
#
#   launch/gke.sh [--dry-run] --config=configs/models/llama3_8b.py --workdir=/shared/run [more flags]
#
# The host's processes are started again after a failure and resume. A JobSet that has ended stays: before the same
# NAME is used again, `kubectl delete jobset NAME`.
#
# Settings, from the environment:
#   IMAGE        a container image with selfparam_jax and jax[tpu] (required)
#   CLAIM        a persistent volume claim that all hosts share, mounted at /shared (selfparam)
#   NAME         of the JobSet (selfparam)       ACCELERATOR  (tpu-v5-lite-podslice)
#   TOPOLOGY     (4x4)                           HOSTS        (4)
#   CHIPS        per host (4)                    RETRIES      restarts after a failure or preemption (20)
set -euo pipefail

dry_run=false
if [[ ${1:-} == --dry-run ]]; then
  dry_run=true
  shift
fi
if [[ $# -eq 0 || -z ${IMAGE:-} ]]; then
  echo "error: got IMAGE='${IMAGE:-}' and $# flags, expected an image and --config=... --workdir=/shared/..." >&2
  exit 2
fi
quoted=()
for flag in "$@" --distributed=on; do
  flag=${flag//\\/\\\\}
  quoted+=("\"${flag//\"/\\\"}\"")
done
arguments="[$(IFS=,; echo "${quoted[*]}")]"
filled=$(<"$(dirname "$0")/gke_jobset.yaml")
fill() { filled=${filled//"\${$1}"/"$2"}; }
fill ARGUMENTS "$arguments"
fill IMAGE "$IMAGE"
fill NAME "${NAME:-selfparam}"
fill CLAIM "${CLAIM:-selfparam}"
fill ACCELERATOR "${ACCELERATOR:-tpu-v5-lite-podslice}"
fill TOPOLOGY "${TOPOLOGY:-4x4}"
fill HOSTS "${HOSTS:-4}"
fill CHIPS "${CHIPS:-4}"
fill RETRIES "${RETRIES:-20}"
if $dry_run; then
  printf "kubectl apply -f - <<'END'\n%s\nEND\n" "$filled"
else
  kubectl apply -f - <<<"$filled"
fi
