#!/usr/bin/env bash
# The documentation as a site in docs/_build/html. A warning fails, and so does a link inside the site
# that leads nowhere, or a worked example that prints something else than its page shows. Arguments go
# to sphinx-build.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
. "$here/setup_env.sh" requirements-docs.txt
cd "$root"
"$python" -m sphinx -q -W --keep-going -b html "$@" docs docs/_build/html
"$python" docs/check_site.py docs/_build/html
"$python" docs/check_examples.py
echo "docs: $root/docs/_build/html/index.html"
