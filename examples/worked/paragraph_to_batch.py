"""From a paragraph to a row of a batch: spans, masks, a demonstration, tokens, the loss mask.

    python -m examples.worked.paragraph_to_batch

`build_ramp`, `build_trajectories` and `build_cache` do the same for a corpus, and `train_sft` reads
the rows. Here each step is one call.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from examples import my_search, my_teacher
from masksearch_jax.core import rows
from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.types import Demonstration, Passage, RampExample
from masksearch_jax.data import batches, demonstrations, prompt
from masksearch_jax.ramp.examples import build_examples
from masksearch_jax.ramp.spans import RulesExtractor

PASSAGES = [
    Passage("thames", "River Thames", "The barrier near Woolwich was opened in May 1984."),
    Passage("loire", "Loire Valley", "The painter Leonardo da Vinci died at Amboise in 1519."),
]
CONFIG = RampConfig(heldout_fraction=0.0, max_masks=2, examples_per_passage=1)
SEQ_LEN = 256  # tokens of a row: two demonstrations fit


def mask_paragraphs() -> list[RampExample]:
    """The spans that a reader would have to look up, and an example of each paragraph."""
    found = RulesExtractor("en").find(PASSAGES)
    for passage, candidates in zip(PASSAGES, found, strict=True):
        print(f"{passage.title}: {[f'{s.text} ({s.type})' for s in candidates.spans]}")
    examples, _ = build_examples(PASSAGES, CONFIG, log=lambda line: None)
    for example in examples["train"]:
        print(f"{example.id}, {example.k} of them masked: {example.masked}")
    return examples["train"]


def show(demonstration: Demonstration) -> None:
    """Who wrote what; only what the policy wrote is learned."""
    for segment in demonstration.segments:
        print(f"  {segment.author:6} {segment.text}")


def to_tokens(example: RampExample, demonstration: Demonstration, vocab: Vocab) -> rows.Tokens:
    """Ids, targets and the weight of each target in the loss."""
    asked = prompt.render(example, "minimal", vocab)
    ids, agent = demonstrations.tokenise(asked, demonstration, vocab)
    print(f"  {len(ids)} tokens, {agent.sum()} of them written by the agent")
    record = {"id": demonstration.id, "ids": ids, "agent": agent}
    return batches.sft_tokens(record, context_weight=0.0, padding=vocab.pad_id)


def draw(batch: rows.Batch) -> None:
    """One character for each token of the first row."""
    segments, weights = batch["segment_ids"][0], batch["loss_weights"][0]
    signs = np.where(weights > 0, "#", np.where(segments > 0, ".", " "))
    for start in range(0, SEQ_LEN, 64):
        part = slice(start, start + 64)
        print(f"\nposition {start}")
        print("segment ", "".join(str(s or " ") for s in segments[part]).rstrip())
        print("loss    ", "".join(signs[part]).rstrip())


def main() -> None:
    examples = mask_paragraphs()
    search = my_search.TitleSearch(PASSAGES)
    with tempfile.TemporaryDirectory() as folder:
        texts = (p.text for p in PASSAGES)
        vocab = Vocab.load(train_bpe(texts, Path(folder) / "tokenizer", 320))
    tokens = []
    for example in examples:
        demonstration = my_teacher.solve(example, search)
        print(f"\n{demonstration.id}")
        show(demonstration)
        tokens.append(to_tokens(example, demonstration, vocab))
    batch = rows.lay([tokens], SEQ_LEN, batches.SFT_FIELDS, vocab.pad_id)
    print("\na batch of one row:")
    for name, values in batch.items():
        print(f"  {name} {values.dtype}{list(values.shape)}")
    draw(batch)


if __name__ == "__main__":
    main()
