"""Settings of the documentation's build by Sphinx; `bash launch/docs.sh` runs it."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import configuration_reference  # noqa: E402

project = "masksearch_jax"
author = "masksearch_jax contributors"
project_copyright = f"2026, {author}"

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3  # links to headings, as in `sft.md#lora`
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "masksearch_jax"
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False


def setup(app):
    app.connect("builder-inited", lambda app: configuration_reference.write(DOCS / "_generated"))
