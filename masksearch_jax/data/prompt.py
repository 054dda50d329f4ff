"""What the policy is given: the task text, alone or inside instructions in the chat template."""

from __future__ import annotations

from collections.abc import Sequence

from masksearch_jax.core import markup
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.tokenizer import Vocab, VocabError, Vocabulary
from masksearch_jax.core.tools import SEARCHING, Instructions
from masksearch_jax.core.types import Example, QAExample, RampExample

STYLES = ("minimal", "chat")
SEARCH_ALONE = (SEARCHING,)

_TURNS = """\
You answer with the help of {offers}. In each turn, first think between <think> and </think>. \
Then do one of {number} things:
{usages}
- answer: put your final answer between <answer> and </answer>. This ends the task."""
_NUMBERS = ("two", "three", "four", "five", "six", "seven")
RAMP_TASK = """\
Below is a paragraph in which some words have been replaced by [mask]. Fill every [mask], and \
give back the whole paragraph, changed nowhere else, as your answer."""
QA_TASK = """\
Below is a question. Answer it with a name, a date, a number or a short phrase, without a sentence \
around it."""


def question_text(example: Example, tools: Sequence[Instructions] = SEARCH_ALONE) -> str:
    """The task itself: a masked paragraph, known by its `[mask]`, or a question without one."""
    if isinstance(example, RampExample):
        return example.masked
    names = [about.name for about in tools]
    return markup.escape(example.question, names).replace(markup.MASK, "[ mask ]")


def as_example(question: str) -> Example:
    """A paragraph to fill where there is a `[mask]`, else a question; neither with an answer."""
    question = question.strip()
    if markup.MASK in question:
        return RampExample("question", "", "", masked=question, paragraph="", spans=())
    return QAExample("question", "", question, ())


def instructions(tools: Sequence[Instructions] = SEARCH_ALONE) -> str:
    """What an agent may do, of which each tool says its part."""
    offers = [about.offers for about in tools]
    named = " and ".join(filter(None, (", ".join(offers[:-1]), offers[-1])))
    usages = "\n".join(f"- {about.name}: {about.usage};" for about in tools)
    number = _NUMBERS[len(tools) - 1] if len(tools) <= len(_NUMBERS) else str(len(tools) + 1)
    text = _TURNS.format(offers=named, number=number, usages=usages)
    return "\n".join((text, *(about.advice for about in tools if about.advice)))


def render(
    example: Example,
    style: str,
    vocab: Vocabulary,
    tools: Sequence[Instructions] = SEARCH_ALONE,
) -> str:
    """The prompt of an example. ValueError with the choices for an unknown style.

    minimal: the task text and a line break. chat: instructions and the task as one user message.
    """
    text = wording(example, style, tools)
    if style == "minimal":
        return text
    return vocab.apply_chat_template([{"role": "user", "content": text}])


def wording(example: Example, style: str, tools: Sequence[Instructions] = SEARCH_ALONE) -> str:
    """The prompt of an example before a template is applied. ValueError as `render`."""
    text = question_text(example, tools)
    if style == "minimal":
        return f"{text}\n"
    if style == "chat":
        task = RAMP_TASK if isinstance(example, RampExample) else QA_TASK
        return "\n\n".join((instructions(tools), task, text))
    raise ValueError(f"prompt style is {style!r}; choices: {', '.join(STYLES)}")


def check_style(style: str, vocab: Vocab, key: str = "config") -> None:
    """Raises ConfigError naming KEY.prompt.style for a tokenizer that cannot write that style."""
    if style == "chat":
        try:
            vocab.check_chat_template()
        except VocabError as error:
            raise ConfigError(
                f"{key}.prompt.style is 'chat', and {error}; give another folder as "
                f"{key}.tokenizer, or choose 'minimal'"
            ) from error
