# shellcheck shell=bash
# Sourced by the launchers: `check_command MAIN ARGUMENTS` ends with a line and status 2 for what every
# host would refuse (a main, a config file, a key or a value that is not there), before anything is asked
# of a cloud. What the hosts have, such as the folder of a model, need not be here. The checkout's folder
# is left in $root. LAUNCH_PYTHON: an interpreter that has the run's requirements; without it, setup_env.sh
# makes one, but for a launcher's --dry-run ($dry), which takes what is there.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

check_command() {
  local main=$1 path names=()
  shift
  if [ ! -f "$root/masksearch_jax/$main.py" ] || [[ $main == *[!a-z_0-9]* ]]; then
    for path in "$root"/masksearch_jax/*.py; do
      ! grep -q '^if __name__' "$path" || names+=("$(basename "$path" .py)")
    done
    echo "error: $main is no main; choices: ${names[*]}" >&2
    exit 2
  fi
  python=${LAUNCH_PYTHON:-}
  if [ -z "$python" ] && [ -n "${dry:-}" ]; then
    python=$root/.venv/bin/python
    if ! (cd "$root" && "$python" -c 'import ml_collections, masksearch_jax.runtime.cli') 2>/dev/null; then
      echo "keys and values are not checked: bash launch/setup_env.sh requirements.txt makes what checks them" >&2
      return
    fi
  elif [ -z "$python" ]; then
    # shellcheck source-path=SCRIPTDIR source=setup_env.sh
    . "$root/launch/setup_env.sh" requirements.txt >&2
  fi
  # Hosts start in the checkout, to which a config's path is relative.
  (cd "$root" && JAX_PLATFORMS=cpu "$python" -m "masksearch_jax.$main" "$@" --check) ||
    exit 2
}
