# shellcheck shell=bash
# Run alone, or sourced by the other scripts: `launch/setup_env.sh REQUIREMENTS.txt` leaves a virtual
# environment in .venv beside setup.py, its interpreter in $python and the checkout's folder in $root.
# Does nothing when all is up to date; after an interruption the next call mends what was left. Of two
# at once the second waits.
# In an installed package, which has no setup.py beside, the environment is the one on PATH.
# Ends with 1 where no Python serves, and with 42 (start it again) where making the environment failed.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
requirements=$root/${1:?usage: . launch/setup_env.sh REQUIREMENTS.txt}
venv=$root/.venv
python=$venv/bin/python

# The first interpreter that runs (a shim may exist and fail), is of a version that all pins install
# on, best tested first, and can make virtual environments.
find_python() {
  local candidate
  local check='import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c "$check" >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

# uv, which pip brings, brings a Python of its own to the home folder and makes .venv with it.
venv_by_uv() {
  local uv status=0
  uv=$(mktemp -d) || return
  echo "setup: creating .venv with Python 3.11, which uv brings"
  python3 -m pip install --disable-pip-version-check -qq --target "$uv" uv==0.13.9 &&
    "$uv/bin/uv" venv --quiet --clear --managed-python --python 3.11 "$venv" || status=$?
  rm -rf "$uv"
  return "$status"
}

make_venv() {
  local base
  if base=$(find_python); then
    echo "setup: creating .venv with $("$base" --version), $base"
    "$base" -m venv --clear --without-pip "$venv" || return 42
  elif [ "$1" = requirements-tpu.txt ] && python3 -m pip --version >/dev/null 2>&1; then
    # A TPU VM: its Ubuntu 22.04 has Python 3.10.
    venv_by_uv || return 42
  else
    echo "error: no Python 3.11, 3.12 or 3.13 with the venv module is on PATH" \
      "(on Debian and Ubuntu: apt install python3-venv)" >&2
    return 1
  fi
}

has_pip() { "$python" -m pip --version >/dev/null 2>&1; }

make_pip() {
  # A pip that is there and does not run was cut off while it was copied.
  rm -rf "$venv"/lib/python3*/site-packages/pip "$venv"/lib/python3*/site-packages/pip-*
  "$python" -m ensurepip --default-pip >/dev/null
}

pip_install() { "$python" -m pip install --disable-pip-version-check -qq "$@"; }

install_requirements() {
  local overwrite=()
  if [ -e "$venv/.installing" ]; then
    # Killed half way, pip may have left packages that look installed and are not whole.
    overwrite=(--ignore-installed)
    echo "setup: the last installation was cut off; installing everything again"
  fi
  touch "$venv/.installing" || return
  has_pip || make_pip || return
  echo "setup: installing $(basename "$requirements") (minutes on the first run)"
  pip_install ${overwrite[@]+"${overwrite[@]}"} -r "$requirements" || return
  echo "setup: installing masksearch_jax"
  pip_install --no-deps --no-build-isolation -e "$root" || return
  rm -f "$venv/.installing"
}

# What an environment is made from: the pins, the package's own list and its place on disk.
fingerprint() {
  { cat "$root/requirements.txt" "$requirements" "$root/setup.py" && echo "$root"; } | cksum
}

is_ready() {
  "$python" -c '' 2>/dev/null && [ ! -e "$venv/.installing" ] &&
    [ "$(fingerprint)" = "$(cat "$venv/.installed-$1" 2>/dev/null)" ]
}

# One set-up at a time, by a lock on descriptor 8, which ends with the set-up and what it started.
# Where there is no flock, as on macOS, there is none.
wait_for_others() {
  command -v flock >/dev/null || return 0
  flock -n 8 && return
  echo "setup: another set-up of .venv is running; this one waits for it"
  flock 8 || echo "setup: $root takes no locks; start no two set-ups at once there"
}

make_ready() {
  wait_for_others
  is_ready "$1" && return
  if ! "$python" -c '' 2>/dev/null; then
    make_venv "$1" || return
  fi
  install_requirements || return 42
  fingerprint >"$venv/.installed-$1" || return 42
}

setup_env() {
  # In a subshell: what the script becomes afterwards holds no lock.
  is_ready "$1" || (make_ready "$1") 8>>"$root/setup.py" || return
  echo "setup: ready, $("$python" --version) in $venv"
}

if [ -f "$root/setup.py" ]; then
  setup_env "$1" || exit
else
  python=$(command -v python) || { echo "error: no python is on PATH" >&2; exit 1; }
fi
