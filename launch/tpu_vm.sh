#!/usr/bin/env bash
# Runs a main on all hosts of a TPU slice until it is done: makes the slice where it is absent, waits
# for it, copies this checkout, starts the command on every host, and starts it again when the slice
# was preempted or a host exits with 42 or a signal. The same command again goes on with what there is.
# The type, the main, its config and its overrides are checked here, before a slice is asked for.
set -euo pipefail

usage='usage: tpu_vm.sh [options] -- MAIN --config=FILE:ARG [--config.KEY=VALUE ...]
  --name=NAME       of the queued resource and its node (needed)
  --zone=ZONE       (needed)
  --type=TYPE       accelerator: v5litepod-16, v5p-64, v6e-256 (needed but for --delete)
  --project=PROJECT default: of gcloud
  --runtime=VERSION software of the VMs; default: by the type
  --spot            preemptible: cheaper, deleted and asked for again when it is taken away
  --reserved        from a reservation
  --data=gs://...   copied to /data on every host first; what is there already is not copied again
  --restarts=50     starts after the first one before giving up
  --delete          delete the slice and end
  --dry-run         print the commands, as for an absent slice, and run none'

fail() {
  echo "error: $1" >&2
  exit "${2:-2}"
}

name='' zone='' type='' project='' runtime='' data='' restarts=50 dry='' delete=''
provision=()
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --spot | --reserved) provision+=("$1") ;;
    --data=*) data=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --delete) delete=yes ;;
    --dry-run) dry=yes ;;
    --help | -h) echo "$usage" && exit ;;
    --) shift && break ;;
    *) fail "$1 is not an option; a main and its arguments come after --
$usage" ;;
  esac
  shift
done
[ -n "$name" ] && [ -n "$zone" ] || fail "--name and --zone are needed
$usage"
if [ -z "$delete" ]; then
  [ -n "$type" ] && [ $# -gt 0 ] || fail "--type and a main after -- are needed
$usage"
fi

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=check_command.sh
. "$here/check_command.sh"
poll=${TPU_VM_POLL_SECONDS:-30}
log=${TPU_VM_LOG:-$name.log}
ssh_hint="gcloud reaches several hosts by the key in ssh-agent: ssh-add ~/.ssh/google_compute_engine"
where=("--zone=$zone" ${project:+"--project=$project"})

# An accelerator type as `gcloud` spells it: a generation and a number, of chips or of cores.
check_type() {
  local choices='choices: v4-N and v5p-N (N cores, two a chip: 8, 16, 32, ...), v5litepod-N and v6e-N (N chips: 1, 4, 8, 16, 32, 64, 128, 256)'
  local size=${type##*-}
  case $type in
    v5e-* | v5lite-*) fail "--type=$type: v5e is v5litepod-$size here; $choices" ;;
    v5litepod-* | v6e-*)
      case $size in
        1 | 4 | 8 | 16 | 32 | 64 | 128 | 256) return ;;
      esac
      ;;
    v4-* | v5p-*) [[ $size =~ ^[1-9][0-9]*$ ]] && ((size >= 8 && size % 8 == 0)) && return ;;
    v7x-* | tpu7x-* | tpu7-* | ironwood-*)
      fail "--type=$type: TPU7x has no queued resources: see gke/; $choices"
      ;;
  esac
  fail "--type=$type is no accelerator type; $choices"
}

# Software versions as Google Cloud documents them for each generation.
default_runtime() {
  case $type in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-*) echo tpu-ubuntu2204-base ;;
  esac
}

say() { echo "tpu_vm: $*" >&2; }

# Runs a command that changes something; with --dry-run only prints it.
act() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

# What gcloud says of the queued resource or of its node by a format; ABSENT where there is none. Fails
# when it cannot be known: a slice that cannot be seen is not one to make a second time, or to delete.
describe() {
  local found error status=0
  error=$(mktemp)
  found=$(gcloud compute tpus "$1" describe "$name" "${where[@]}" "--format=$2" 2>"$error") || status=$?
  if [ "$status" -ne 0 ] && grep -qiE 'not_found|was not found' "$error"; then
    found=ABSENT status=0
  fi
  [ "$status" -eq 0 ] || cat "$error" >&2
  rm -f "$error"
  echo "$found"
  return "$status"
}

# ABSENT, WAITING_FOR_RESOURCES, SUSPENDED, ..., and of an active one with its node's: ACTIVE/READY. A
# queued resource stays ACTIVE for a while after its node was preempted.
state() {
  local found node
  found=$(describe queued-resources 'value(state.state)') || return
  if [ "$found" = ACTIVE ]; then
    node=$(describe tpu-vm 'value(state)') || return
    found=ACTIVE/$node
  fi
  echo "$found"
}

create() {
  act gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" \
    "--accelerator-type=$type" "--runtime-version=$runtime" ${provision[@]+"${provision[@]}"}
}

remove() {
  act gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

# Returns when there is a slice, with 42 when it is to be tried again as a restart. What is gone is
# deleted and asked for again, as spot TPUs cannot be started again; what only changes is waited for.
ensure() {
  local now last='' unseen=0
  if [ -n "$dry" ]; then
    create
    return
  fi
  while true; do
    if ! now=$(state); then
      unseen=$((unseen + 1)) # a network has its bad minutes
      [ "$unseen" -le 20 ] || fail "the state of $name cannot be read" 1
      say "the state of $name cannot be read; it is asked again"
      sleep "$poll"
      continue
    fi
    unseen=0
    [ "$now" = "$last" ] || say "$name is $now"
    last=$now
    case $now in
      ACTIVE/READY) return ;;
      ABSENT)
        create || {
          [ "$try" -gt 0 ] || fail "$name cannot be created" 1
          return 42
        }
        ;;
      FAILED)
        say "$name failed, as Google Cloud says:"
        describe queued-resources 'yaml(state)' >&2
        remove
        return 42
        ;;
      SUSPENDED | ACTIVE/ABSENT | ACTIVE/PREEMPTED | ACTIVE/TERMINATED)
        remove || return 42
        sleep "$poll"
        ;;
      *) sleep "$poll" ;;
    esac
  done
}

on_all() { act gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all "--command=$1"; }

# Names of the files that hosts get, each ended by NUL: what git has and would take. Other repositories
# inside, which git names as folders, are left out.
list_files() {
  local file
  git -C "$root" ls-files -coz --exclude-standard | while IFS= read -r -d '' file; do
    [ ! -f "$root/$file" ] || printf '%s\0' "$file"
  done
}

# Packs them; where there is no git, all that is not ignored.
pack() {
  if [ -e "$root/.git" ] && command -v git >/dev/null; then
    list_files >"$1.files" && act tar -czf "$1" -C "$root" --null -T "$1.files"
  else
    act tar -czf "$1" -C "$root" --exclude-from="$root/.gitignore" --exclude=./.git .
  fi
}

# This checkout, without what is made in it, to ~/masksearch_jax of every host.
copy_code() {
  local folder status=0
  folder=$(mktemp -d) || return
  pack "$folder/masksearch_jax.tgz" &&
    act gcloud compute tpus tpu-vm scp "$folder/masksearch_jax.tgz" "$name:masksearch_jax.tgz" \
      "${where[@]}" --worker=all &&
    on_all 'mkdir -p masksearch_jax && tar -xzf masksearch_jax.tgz -C masksearch_jax' || status=$?
  rm -rf "$folder"
  return "$status"
}

copy_data() {
  local quoted
  printf -v quoted %q "$data"
  on_all "sudo mkdir -p /data && sudo chown \"\$USER\" /data && gcloud storage rsync -r $quoted /data"
}

# The command on every host; each says its status.
start() {
  local quoted
  printf -v quoted '%q ' "$@"
  on_all "bash masksearch_jax/launch/tpu_worker.sh $quoted"
}

# Four chips are a host's; the smallest slices of v5e and v6e are one host.
host_count() {
  local size=${type##*-}
  case $type in
    v4-* | v5p-*) echo $((size / 8)) ;;
    *) echo $((size <= 8 ? 1 : size / 4)) ;;
  esac
}

# The log of an attempt beside the run's other files, where those are in a bucket.
keep_log() {
  local argument
  for argument in "$@"; do
    case $argument in
      --config.workdir=gs://*)
        act gcloud storage cp "$log" "${argument#*=}/logs/$name-$(date -u +%Y%m%dT%H%M%SZ).log" ||
          say "the log was not copied to the bucket; it is $log"
        ;;
    esac
  done
}

# One attempt; 0 done, 42 to start again, else the status to end with.
attempt() {
  local heard count hosts statuses
  ensure || return
  copy_code || {
    say "the checkout did not reach all hosts; $ssh_hint"
    return 42
  }
  [ -z "$data" ] || copy_data || return 42
  if [ -n "$dry" ]; then
    start "$@"
    keep_log "$@"
    return 0
  fi
  # gcloud's own status says nothing of a single host.
  start "$@" 2>&1 | tee "$log"
  keep_log "$@"
  heard=$(grep -aoE 'tpu_vm: [^ ]+ exits with [0-9]+' "$log" | awk '{ print $NF }')
  count=$(grep -c . <<<"$heard")
  hosts=$(host_count)
  statuses=$(sort -un <<<"$heard" | tr '\n' ' ')
  say "exit statuses of the hosts: ${statuses% } ($count of $hosts heard)"
  case " $statuses" in
    ' 0 ') [ "$count" -lt "$hosts" ] || return 0 ;;
    *' 1 '* | *' 2 '* | *' 126 '* | *' 127 '*)
      # A host's own failure, unless the slice went from under it.
      [ "$(state)" = ACTIVE/READY ] || return 42
      case " $statuses" in *' 2 '*) return 2 ;; *) return 1 ;; esac
      ;;
  esac
  [ "$count" -gt 0 ] || say "no host was heard of; $ssh_hint"
  return 42
}

if [ -n "$delete" ]; then
  if [ -n "$dry" ] || [ "$(state)" != ABSENT ]; then
    remove
  fi
  exit
fi

check_type
[ -n "$runtime" ] || runtime=$(default_runtime)
check_command "$@"
trap 'say "stopped; $name is kept: the same command goes on, --delete deletes it"; exit 130' INT TERM
for ((try = 0; try <= restarts; try++)); do
  [ "$try" -eq 0 ] || say "start $try of at most $restarts after the first"
  status=0
  attempt "$@" || status=$?
  case $status in
    0) say "done; --delete deletes $name" && exit ;;
    42) [ -n "$dry" ] || sleep "$poll" ;;
    *) fail "the command failed on $name; see $log" "$status" ;;
  esac
done
fail "given up after $restarts restarts; see $log" 1
