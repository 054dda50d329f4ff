#!/usr/bin/env bash
# The tests; arguments go to pytest, e.g. -m slow, or tests/test_cli.py -k typo.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
. "$here/setup_env.sh" requirements-test.txt
cd "$root"
exec "$python" -m pytest -n auto --dist loadfile "$@"
