# shellcheck shell=bash
# Run alone, or sourced by the other scripts: `launch/setup_env.sh REQUIREMENTS.txt` leaves a virtual
# environment in .venv beside setup.py, its interpreter in $python and the checkout's folder in $root.
# Does nothing when all is up to date; after an interruption the next call mends what was left.
# In an installed package, which has no setup.py beside, the environment is the one on PATH.

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
  echo "error: no Python 3.11, 3.12 or 3.13 with the venv module is on PATH" \
    "(on Debian and Ubuntu: apt install python3-venv)" >&2
  return 1
}

make_venv() {
  local base
  base=$(find_python) || return
  echo "setup: creating .venv with $("$base" --version), $base"
  "$base" -m venv --clear --without-pip "$venv"
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

setup_env() {
  local stamp
  stamp=$venv/.installed-$(basename "$requirements")
  if ! "$python" -c '' 2>/dev/null; then
    make_venv || return
  fi
  if [ -e "$venv/.installing" ] || [ "$(fingerprint)" != "$(cat "$stamp" 2>/dev/null)" ]; then
    install_requirements || return
    fingerprint >"$stamp"
  fi
  echo "setup: ready, $("$python" --version) in $venv"
}

if [ -f "$root/setup.py" ]; then
  setup_env || exit 1
else
  python=$(command -v python) || { echo "error: no python is on PATH" >&2; exit 1; }
fi
