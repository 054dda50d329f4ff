#!/usr/bin/env bash
# Runs a main on TPU slices of a GKE cluster through xpk, which makes the JobSet. The same command
# again finds the workload and does nothing; --replace deletes it first.
set -euo pipefail

usage='usage: xpk.sh [options] -- MAIN --config=FILE:ARG [--config.KEY=VALUE ...]
  --name=NAME --cluster=CLUSTER --zone=ZONE --type=TYPE --image=IMAGE    (needed)
  --project=PROJECT default: of gcloud
  --slices=1        of that type
  --restarts=50     xpk itself would not start again at all
  --grace=120       seconds to save after SIGTERM (spot nodes: 30, whatever is asked for)
  --storage=NAME    of a bucket that xpk storage attach mounts at /data
  --replace         delete an earlier workload of this name first
  --dry-run         print the commands and run none'

fail() {
  echo "error: $1" >&2
  exit 2
}

name='' cluster='' zone='' type='' image='' project='' storage='' replace='' dry=''
slices=1 restarts=50 grace=120
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --cluster=*) cluster=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --storage=*) storage=${1#*=} ;;
    --replace) replace=yes ;;
    --dry-run) dry=yes ;;
    --help | -h) echo "$usage" && exit ;;
    --) shift && break ;;
    *) fail "$1 is not an option; a main and its arguments come after --
$usage" ;;
  esac
  shift
done
for needed in name cluster zone type image; do
  [ -n "${!needed}" ] || fail "--$needed is needed
$usage"
done
[ $# -gt 0 ] || fail "a main after -- is needed
$usage"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../check_command.sh
. "$here/../check_command.sh"
check_command "$@"

act() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

where=("--zone=$zone" ${project:+"--project=$project"})
act gcloud container clusters get-credentials "$cluster" "${where[@]}"
if [ -z "$dry" ]; then
  found=$(kubectl get jobset "$name" --ignore-not-found -o name)
  if [ -n "$found" ] && [ -z "$replace" ]; then
    echo "xpk: $name is there already: kubectl get jobset $name; --replace starts it anew" >&2
    exit
  fi
fi
if [ -n "$replace" ] && { [ -n "$dry" ] || [ -n "$found" ]; }; then
  act xpk workload delete "--workload=$name" "--cluster=$cluster" "${where[@]}" --force
fi
# xpk restarts on 42 and 127 to 255 and gives up on other failures, as the exit statuses here mean.
printf -v quoted '%q ' "$@"
act xpk workload create "--workload=$name" "--cluster=$cluster" "${where[@]}" "--tpu-type=$type" \
  "--num-slices=$slices" "--docker-image=$image" "--max-restarts=$restarts" \
  "--termination-grace-period-seconds=$grace" ${storage:+"--storage=$storage"} \
  "--command=cd /masksearch_jax && exec bash launch/worker.sh $quoted"
