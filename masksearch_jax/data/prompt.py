"""What the policy is given: the task text, alone or inside instructions in the chat template."""

from __future__ import annotations

from masksearch_jax.core import markup
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.tokenizer import Vocab, VocabError, Vocabulary
from masksearch_jax.core.types import Example, QAExample, RampExample

STYLES = ("minimal", "chat")

_TOOLS = """\
You answer with the help of a search engine over an encyclopedia. In each turn, first think \
between <think> and </think>. Then do one of two things:
- search: put one to three queries, one per line, between <search> and </search>. What is found \
comes back between <information> and </information>;
- answer: put your final answer between <answer> and </answer>. This ends the task.
Search as often as you need to, and trust what you read more than what you remember."""
RAMP_TASK = """\
Below is a paragraph in which some words have been replaced by [mask]. Fill every [mask], and \
give back the whole paragraph, changed nowhere else, as your answer."""
QA_TASK = """\
Below is a question. Answer it with a name, a date, a number or a short phrase, without a sentence \
around it."""


def question_text(example: Example) -> str:
    """The task itself: a masked paragraph, known by its `[mask]`, or a question without one."""
    if isinstance(example, RampExample):
        return example.masked
    return markup.escape(example.question).replace(markup.MASK, "[ mask ]")


def as_example(question: str) -> Example:
    """A paragraph to fill where there is a `[mask]`, else a question; neither with an answer."""
    question = question.strip()
    if markup.MASK in question:
        return RampExample("question", "", "", masked=question, paragraph="", spans=())
    return QAExample("question", "", question, ())


def render(example: Example, style: str, vocab: Vocabulary) -> str:
    """The prompt of an example. ValueError with the choices for an unknown style.

    minimal: the task text and a line break. chat: instructions and the task as one user message.
    """
    text = wording(example, style)
    if style == "minimal":
        return text
    return vocab.apply_chat_template([{"role": "user", "content": text}])


def wording(example: Example, style: str) -> str:
    """The prompt of an example before a template is applied. ValueError as `render`."""
    if style == "minimal":
        return f"{question_text(example)}\n"
    if style == "chat":
        task = RAMP_TASK if isinstance(example, RampExample) else QA_TASK
        return "\n\n".join((_TOOLS, task, question_text(example)))
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
