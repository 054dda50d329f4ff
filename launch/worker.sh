#!/usr/bin/env bash
# What every host of a TPU slice runs, however it was started: `worker.sh MAIN ARGUMENTS`. Makes the
# environment where it is not there yet, joins the other hosts, and becomes the main, whose exit
# status is the host's.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
main=${1:?usage: worker.sh MAIN --config=FILE:ARG [--config.KEY=VALUE ...]}
shift
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
. "$here/setup_env.sh" requirements-tpu.txt
cd "$root" # configs are named relative to the checkout
# JAX finds the other hosts by the metadata of the TPU VM or of GKE.
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS-auto}
exec "$python" -m "masksearch_jax.$main" "$@"
