#!/usr/bin/env bash
# Runs a job on a TPU pod slice of Google Cloud: creates it as a queued resource, installs, runs on all workers,
# follows the log of the first, collects the results and deletes the slice. `all` leaves the slice there: it is paid
# for until `delete`.
#
#   launch/tpu_pod.sh [--dry-run] COMMAND [flags of selfparam_jax.main]
#
#   create    ask for the slice, unless it has been asked for, and wait until it is there
#   install   copy this directory to every worker and install it
#   run       start the job on every worker, in the background; when it has ended, again: it resumes from its checkpoint
#   follow    the end of the first worker's log every minute until the job has ended, with its status
#   logs      follow the first worker's log
#   collect   copy the work directory from the first worker to ./results
#   delete    give the slice back
#   all       create, install, run and follow; after a preemption of a spot slice, all of it again
#
# Settings, from the environment:
#   NAME       of the slice (selfparam)          ZONE      (us-central1-a)
#   TYPE       accelerator type (v5litepod-16)   VERSION   of its software (v2-alpha-tpuv5-lite)
#   SPOT       1 for spot capacity (0)           PROJECT   (gcloud's default)
#   WORKDIR    on storage that all workers share, e.g. a Filestore mount (required by run and collect)
#   RETRIES    how often `all` begins again after a preemption (20)
set -euo pipefail

dry_run=false
if [[ ${1:-} == --dry-run ]]; then
  dry_run=true
  shift
fi
command=${1:-}
[[ $# -gt 0 ]] && shift
name=${NAME:-selfparam}
zone=${ZONE:-us-central1-a}
type=${TYPE:-v5litepod-16}
version=${VERSION:-v2-alpha-tpuv5-lite}
spot=${SPOT:-0}
retries=${RETRIES:-20}
place=(--zone "$zone")
[[ -n ${PROJECT:-} ]] && place+=(--project "$PROJECT")
here=$(cd "$(dirname "$0")/.." && pwd)

do_it() { # shows a command, and runs it unless this is a dry run
  if $dry_run; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

need_workdir() {
  if [[ -z ${WORKDIR:-} ]]; then
    echo "error: WORKDIR is not set; give a directory on storage that all workers share, e.g. WORKDIR=/mnt/share/run" >&2
    exit 2
  fi
}

on_workers() { # which, command
  do_it gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$1" --command="$2"
}

state() { # of the slice; NONE: there is none; UNKNOWN: gcloud cannot say, and its message is shown
  local errors answer
  errors=$(mktemp)
  if answer=$(gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format='value(state.state)' 2>"$errors"); then
    echo "$answer"
  elif grep -q NOT_FOUND "$errors"; then
    echo NONE
  else
    cat "$errors" >&2
    echo UNKNOWN
  fi
  rm "$errors"
}

unknown=0 # how often in a row
count_unknown() {
  if [[ $1 != UNKNOWN ]]; then
    unknown=0
  elif ((++unknown == 10)); then
    echo "error: gcloud did not say ten times in a row what the slice $name does" >&2
    exit 1
  fi
}

create() {
  local options=(--node-id="$name" --accelerator-type="$type" --runtime-version="$version") now asked=false
  [[ $spot == 1 ]] && options+=(--spot)
  local line=(gcloud compute tpus queued-resources create "$name" "${place[@]}" "${options[@]}")
  if $dry_run; then
    do_it "${line[@]}"
    return
  fi
  while true; do
    now=$(state)
    count_unknown "$now"
    case $now in
      ACTIVE) return ;;
      NONE)
        if $asked; then
          echo "error: the slice $name was asked for and is not there any more" >&2
          return 1
        fi
        "${line[@]}"
        asked=true
        ;;
      FAILED | SUSPENDED | SUSPENDING | DELETING)
        echo "error: the queued resource $name is $now; 'launch/tpu_pod.sh delete', then create it again" >&2
        return 1
        ;;
    esac
    sleep 30
  done
}

install() {
  local archive
  archive=$($dry_run && echo /tmp/selfparam_jax.tar.gz || echo "$(mktemp -d)/selfparam_jax.tar.gz")
  do_it tar --exclude=.git --exclude='*.egg-info' --exclude=./runs --exclude=./.venv --exclude=./build -czf "$archive" -C "$here" .
  do_it gcloud compute tpus tpu-vm scp "$archive" "$name:selfparam_jax.tar.gz" "${place[@]}" --worker=all
  $dry_run || rm -r "$(dirname "$archive")"
  on_workers all 'mkdir -p selfparam_jax && tar -xzf selfparam_jax.tar.gz -C selfparam_jax && cd selfparam_jax && bash launch/tpu_worker.sh install'
}

run() {
  need_workdir
  local flags
  flags=$(printf '%q ' "$@" "--workdir=$WORKDIR" --distributed=on | sed 's/ $//')
  on_workers all "cd selfparam_jax && bash launch/tpu_worker.sh start $flags"
}

logs() { on_workers 0 'tail -n +1 -F job.log'; }

follow() { # until the job has ended, with its status; 75 if the slice was preempted
  local answer now status=
  while true; do
    $dry_run || sleep 60
    if answer=$(on_workers 0 'tail -n 3 job.log; cat job.status 2> /dev/null || true'); then
      echo "$answer"
      $dry_run && return
      [[ $answer =~ ^[0-9]+$ || $answer =~ $'\n'[0-9]+$ ]] && status=${answer##*$'\n'}
      [[ $status == 0 ]] && return
      # 130: a signal came, and the job has saved. Whatever it ended with, the slice may be about to go.
      [[ -n $status ]] && sleep 60
    fi
    now=$(state)
    count_unknown "$now"
    case $now in
      ACTIVE) [[ -n $status ]] && return "$status" ;;
      UNKNOWN) ;;
      *) return 75 ;;
    esac
  done
}

collect() {
  need_workdir
  do_it gcloud compute tpus tpu-vm scp --recurse "$name:$WORKDIR" results "${place[@]}" --worker=0
}

delete() {
  if ! $dry_run && [[ $(state) == NONE ]]; then
    return
  fi
  do_it gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
}

# A process of its own for every step: `set -e` does nothing in what stands before && or ||.
step() { if $dry_run; then bash "$0" --dry-run "$@"; else bash "$0" "$@"; fi; }

all() {
  need_workdir
  local status=75
  for ((attempt = 0; attempt <= retries && status == 75; attempt++)); do
    if ((attempt)); then
      echo "preempted; attempt $attempt of $retries" >&2
      step delete || break
    fi
    status=0
    { step create && step install && step run "$@" && step follow; } || status=$?
    if $dry_run; then
      echo "# after a preemption, up to $retries times: delete, and all of this again"
      break
    fi
  done
  $dry_run || echo "the slice $name is left there, to be paid for until 'launch/tpu_pod.sh delete'" >&2
  return "$status"
}

case $command in
  create | install | run | follow | logs | collect | delete | all) "$command" "$@" ;;
  *)
    echo "error: got '$command', expected create, install, run, follow, logs, collect, delete or all; see the head of $0" >&2
    exit 2
    ;;
esac
