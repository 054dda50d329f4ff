"""The plan of a DAPO run on a v5p-64, read line by line.

    python -m examples.worked.read_plan

The figures are in `plan_v5p_64.json`, which `plan` wrote by `--config.plan.json`. The page is made
from them as `plan` makes it, and each kind of line is followed by what it means.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from masksearch_jax.planning.page import page, update_of

FIGURES = Path(__file__).with_name("plan_v5p_64.json")
INDENT = dict.fromkeys(("initial_indent", "subsequent_indent"), "      # ")
MEANINGS = {
    " chips, ": "The slice by its sides, and the memory that the compiler counts on a chip.",
    "mesh ": "How the chips are shared between the mesh's axes.",
    "held on a device": "What each chip keeps from step to step.",
    "slots of rollout.max_len": "Room for rollouts: far more slots would fit than are asked for.",
    "update: ": "A training step. Its peak is what the compiler counts, with all that is held.",
    "temporaries": "Of that peak, what is made within the step; the program itself; how long the "
    "compiler took.",
    "all-gather: ": "Weights that chips share, put together layer by layer: how often, and the "
    "bytes that a chip sends. DCN is the network between slices.",
    "reduce-scatter: ": "Gradients, summed and shared again.",
    "all-reduce: ": "Small sums, such as the loss.",
    "all-to-all: ": "Arrays that change how they are shared.",
    "collective-permute: ": "Pieces handed from chip to chip.",
    "FLOPs": "Operations, and how many times those that the model needs: above 1, activations are "
    "computed again to save memory.",
    "all-gathers of the weights": "0 is right: more would hold the whole model at once.",
    "estimate by published peaks: ": "Computed: no TPU has confirmed it.",
    "    compute ": "Seconds of each kind if nothing else happened. The longest bounds the step.",
    "such updates": "The batch, and the longest of these times for all updates of the run. "
    "Sampling is not in it.",
    "logprobs: ": "Log-probabilities under the step's first weights, for several minibatches.",
    "copy: ": "The weights that rollouts read, made once for many ticks.",
    "tick: ": "A step of the rollout engine, in which many tokens are decoded.",
    "    at most ": "Decoding is bound by memory: bytes of a step, and the rate they allow.",
    "with ": "The same update with less computed again: more memory, fewer operations.",
}


def main() -> None:
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    quicker = figures["quicker"]
    text = f"{page(figures)}\n\nwith {quicker['change']}:\n{update_of(quicker['results'])}"
    told = set()
    for line in text.splitlines():
        print(line)
        kind = next((k for k in MEANINGS if k in line), None)
        if kind and kind not in told:
            told.add(kind)
            print(textwrap.fill(MEANINGS[kind], 80, **INDENT))


if __name__ == "__main__":
    main()
