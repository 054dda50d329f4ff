"""The README.md of an exported folder: what the model is, and how to load it."""

from __future__ import annotations

import dataclasses
import json

from masksearch_jax.core.config import ModelConfig
from masksearch_jax.core.schema import key


@dataclasses.dataclass(frozen=True)
class Card:
    """What the folder cannot say itself; what is empty is said to be for its publisher to fill."""

    base_model: str = key("", "Name of the model that training started from.")
    training: str = key(
        "", 'How it was trained, as "RAMP, DAPO"; empty: as the records of its runs say.'
    )
    dataset: str = key("", "What it was trained on.")
    license: str = key("", "Of the exported weights, as an identifier of the Hugging Face hub.")


_TEXT = """\
---
{front}
---

# {title}

{what}

| | |
|---|---|
| base model | {base_model} |
| training | {training} |
| updates | {step} |
| data | {dataset} |
| architecture | {family}, {parameters:,} parameters, {layers} layers of {hidden}, {dtype} |
| licence | {license} |

## Load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{title}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{title}")
```

With searches, from a checkout of `masksearch_jax` and an index of passages:

```bash
python -m masksearch_jax.ask --config=configs/ask.py --config.init={title} \\
  --config.tokenizer={title} --config.search.index=INDEX --config.question="..."
```
{words}"""
_AGENT = """\
A search agent: a language model that plans, calls a search engine, reads what comes back and
answers. Trained with `masksearch_jax`, which implements MaskSearch (arXiv 2505.20285)."""
_MODEL = "A language model, written by `masksearch_jax` as it was read."
_WORDS = """
## Its words

The model writes `<think>…</think>`, then `<search>` with one query per line `</search>`. Whoever
runs it puts the passages found into `<information>…</information>` and lets it go on, until it
writes `<answer>…</answer>`. It has not been trained to be safe, and what it reads may be wrong.
"""


def model_card(
    card: Card, config: ModelConfig, title: str, step: int | None, parameters: int, dtype: str
) -> str:
    """The text of a README.md with the hub's front matter.

    step: updates of the last training, None when unknown; a model of which no training is known
    either is not called an agent. parameters: their number.
    """
    is_agent = bool(card.training) or step is not None
    known = {"license": card.license, "base_model": card.base_model}
    front = [f"{key}: {json.dumps(value)}" for key, value in known.items() if value]
    front += ["library_name: transformers", "pipeline_tag: text-generation"]
    front += ["tags: [search-agent, masksearch]"] if is_agent else []
    return _TEXT.format(
        front="\n".join(front),
        title=title,
        what=_AGENT if is_agent else _MODEL,
        words=_WORDS if is_agent else "",
        base_model=card.base_model or "not recorded",
        training=card.training or "not recorded",
        step="not recorded" if step is None else f"{step:,}",
        dataset=card.dataset or "not recorded",
        license=card.license
        or "to be filled in by whoever publishes it: the base model's licence binds them",
        family=config.family,
        parameters=parameters,
        layers=config.num_layers,
        hidden=config.hidden_size,
        dtype=dtype,
    )
