#!/usr/bin/env bash
# Starts a job as N processes on this machine, each with one CPU device: to try what a pod does.
#
#   launch/local.sh [--dry-run] N --config=configs/batch.py --workdir=/tmp/run [more flags of selfparam_jax.main]
#
# The first process prints here; the others write LOGS/process-I.log (LOGS: a new directory, or as set). If one ends
# with an error, all are stopped. PYTHON names another interpreter, PORT another port.
set -euo pipefail

dry_run=false
if [[ ${1:-} == --dry-run ]]; then
  dry_run=true
  shift
fi
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "error: got '${1:-}', expected the number of processes first: launch/local.sh N --config=... --workdir=..." >&2
  exit 2
fi
count=$1
shift
python=${PYTHON:-python}
port=${PORT:-29500}

command_of() { # index, flags: the command line of one process, in `line`
  local index=$1
  shift
  line=("$python" -m selfparam_jax.main "$@" "--coordinator_address=localhost:$port" "--process_count=$count")
  line+=("--process_index=$index")
}

if $dry_run; then
  for ((index = 0; index < count; index++)); do
    command_of "$index" "$@"
    printf 'JAX_PLATFORMS=cpu %s\n' "$(printf '%q ' "${line[@]}" | sed 's/ $//')"
  done
  exit 0
fi

logs=${LOGS:-$(mktemp -d)}
mkdir -p "$logs"
export JAX_PLATFORMS=cpu
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for ((index = 0; index < count; index++)); do
  command_of "$index" "$@"
  if ((index == 0)); then
    "${line[@]}" &
  else
    "${line[@]}" >"$logs/process-$index.log" 2>&1 &
  fi
  pids+=($!)
done
status=0
for _ in "${pids[@]}"; do
  wait -n || {
    status=$?
    break
  }
done
if ((status)); then
  echo "a process ended with status $status; the others are stopped. Logs: $logs" >&2
fi
exit "$status"
