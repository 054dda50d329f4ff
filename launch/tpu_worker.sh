#!/usr/bin/env bash
# What tpu_vm.sh starts on every host: `tpu_worker.sh MAIN ARGUMENTS` is worker.sh, one at a time. An
# earlier one that still runs is told to save and end, and waited for; 42 where it does not end. The
# last line says the exit status, since gcloud has one for all hosts.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lock=${TPU_WORKER_LOCK:-/tmp/masksearch_jax.lock}
wait=${TPU_WORKER_WAIT:-300} # seconds; pods have 120 to save

say() { echo "tpu_vm: $(hostname) $*"; }

end() {
  say "exits with $1"
  exit "$1"
}

exec 9>>"$lock" || end 1
if ! flock -n 9; then
  earlier=$(cat "$lock")
  say "tells the earlier start, process $earlier, to save and end"
  [ -z "$earlier" ] || kill -TERM "$earlier"
  flock -w "$wait" 9 || {
    say "still has the earlier start after $wait s"
    end 42
  }
fi
status=0
# What the worker starts holds the lock too: it is free when all have ended.
(
  echo "$BASHPID" >"$lock"
  exec bash "$here/worker.sh" "$@"
) || status=$?
end "$status"
