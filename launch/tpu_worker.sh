#!/usr/bin/env bash
# What launch/tpu_pod.sh does on each worker of a slice, in the home directory there.
#
#   tpu_worker.sh install          a virtual environment with a Python of its own: the worker's may be too old
#   tpu_worker.sh start [flags]    the job in the background; job.log is its log, job.status how it ended
set -euo pipefail
cd

install() {
  python3 -m pip install -q --user uv
  [[ -x venv/bin/python ]] || python3 -m uv venv -q --python 3.12 venv
  python3 -m uv pip install -q --python venv/bin/python -e selfparam_jax 'jax[tpu]'
}

start() {
  if [[ -f job.pid && ! -f job.status ]] && kill -0 "$(<job.pid)" 2>/dev/null; then
    echo "error: the job is running on this worker already; 'launch/tpu_pod.sh follow' shows it" >&2
    exit 1
  fi
  rm -f job.status
  cd selfparam_jax
  # It keeps nothing of the connection open: that would last as long as the job.
  # shellcheck disable=SC2016
  nohup bash -c '"$@"; echo "$?" >../job.status' job ../venv/bin/python -m selfparam_jax.main "$@" \
    </dev/null >../job.log 2>&1 &
  echo "$!" >../job.pid
}

case ${1:-} in
  install | start) "$@" ;;
  *)
    echo "error: got '${1:-}', expected install or start" >&2
    exit 2
    ;;
esac
