"""Settings of the documentation's build by Sphinx; `bash launch/docs.sh` runs it."""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import configuration_reference  # noqa: E402
from docutils import nodes  # noqa: E402
from latex2mathml.converter import convert  # noqa: E402

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
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    f"{scheme}_css_variables": {"code-font-size": "75%"} for scheme in ("light", "dark")
}
html_math_renderer = "mathml"  # which browsers draw: the site loads nothing from elsewhere


def visit_math(translator, node):
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_math_block(translator, node):
    translator.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


COMMANDS = re.compile(r'(<div class="highlight-(?:bash|console).*?<pre>)(.*?)(</pre>)', re.DOTALL)
SPACE = '<span class="w"> +</span>'
OPTION = re.compile(
    rf"((?:^{SPACE})?(?<![\w-])--[a-z][\w.-]*)((?:(?!{SPACE})[^\n])*)", re.MULTILINE
)
CONTINUED = re.compile(rf'{SPACE}<span class="se">\\</span>$', re.MULTILINE)


def wrap_commands(app, page, template, context, doctree):
    """Commands are wrapped: each line by itself, indented, and between options where these fit.

    An option does not leave its line's indent behind, nor a backslash its line.
    """

    def mark(block):
        option = r'<span class="option"><span class="key">\1</span>\2</span>'
        text = OPTION.sub(option, block[2])
        text = CONTINUED.sub(r'<span class="continued">\g<0></span>', text)
        lines = text.splitlines(keepends=True)
        if all(line.count("<span") == line.count("</span") for line in lines):
            text = "".join(f'<span class="command">{line}</span>' for line in lines)
        return block[1] + text + block[3]

    if "body" in context:
        context["body"] = COMMANDS.sub(mark, context["body"])


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("html-page-context", wrap_commands)
    app.connect("builder-inited", lambda app: configuration_reference.write(DOCS / "_generated"))
