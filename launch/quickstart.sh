#!/usr/bin/env bash
# The whole recipe on this machine; arguments are overrides, e.g. --config.workdir=/tmp/run.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
. "$here/setup_env.sh" requirements.txt
# No cd: relative paths among the arguments are relative to where the command was given.
exec "$python" -m masksearch_jax.quickstart --config="$root/configs/quickstart.py" "$@"
