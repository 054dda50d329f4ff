"""Settings of the documentation's build by Sphinx; `bash launch/docs.sh` runs it."""

import functools
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import api_reference  # noqa: E402
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
# Of an option's value: behind what joins its parts, which is in no tag.
JOINT = re.compile(r"[,/=](?![\s,/])(?![^<>]*>)")
# A word of code, where its parts end; cells and headings; intervals: [0.1, 0.2] and (1.2–1.4).
WORD = re.compile(r'<span class="pre">([^<]+)</span>')
PART = re.compile(r"(?<=[/=,:_])(?=[^./=,:_])|(?<=\.)(?=[a-z]\w{3})")
LONGEST = 36  # letters of code that a phone holds
NARROW = re.compile(r"<(td|h[1-6])>.*?</\1>", re.DOTALL)
INTERVAL = re.compile(r"\[[-+\d.,]+, [-+\d.,]+\]|\([\d.,]+–[\d.,]+\)")


def lay_out(app, page, template, context, doctree):
    """Lines break where a reader would break them: in commands, at code and in tables.

    A line of a command is wrapped by itself, indented, and between options where these fit. An
    option does not leave its line's indent behind, nor a backslash its line.
    """

    def option(found):
        value = JOINT.sub(r"\g<0><wbr>", found[2])
        return f'<span class="option"><span class="key">{found[1]}</span>{value}</span>'

    def mark(block):
        text = OPTION.sub(option, block[2])
        text = CONTINUED.sub(r'<span class="continued">\g<0></span>', text)
        lines = text.splitlines(keepends=True)
        if all(line.count("<span") == line.count("</span") for line in lines):
            text = "".join(f'<span class="command">{line}</span>' for line in lines)
        return block[1] + text + block[3]

    def narrow(found):
        text = WORD.sub(functools.partial(code, longest=16), found[0])
        return INTERVAL.sub(r'<span class="whole">\g<0></span>', text)

    if "body" in context:
        body = NARROW.sub(narrow, COMMANDS.sub(mark, context["body"]))
        context["body"] = WORD.sub(functools.partial(code, longest=LONGEST), body)


def code(word, longest):
    """A word of code, which is cut between its parts if at all, and then where it is long."""
    if len(word[1]) <= longest:
        return f'<span class="pre whole">{word[1]}</span>'
    parts = PART.split(word[1])
    held = [p if len(p) > LONGEST else f'<span class="whole">{p}</span>' for p in parts]
    return f'<span class="pre parts">{"<wbr>".join(held)}</span>'


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("html-page-context", lay_out)
    for reference in (configuration_reference, api_reference):
        app.connect("builder-inited", lambda app, of=reference: of.write(DOCS / "_generated"))
