"""A pretrained model here and in transformers: supervised update, decoding, import.

    python -m benchmarks.real_model --init=FOLDER_OR_FILE.gguf --json=FILE [--repeats=5]
        [--only=sft,decode,import]

sft: as `benchmarks.train_step`, on one packed row of the model's own size and weights. decode: as
`benchmarks.rollout_decode`, 64 greedy tokens of 1, 8 and 32 prompts against `generate`. import: the
Hugging Face folder in float32 (files in the page cache) until a first forward pass of 16 tokens is
done, each in a process of its own, without the time to import libraries; the GGUF file too. A
figure is the median of the repeats, with least and most; a ratio is of one repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks import rollout, rollout_decode, train_step
from benchmarks.rollout_model import COMPUTE
from masksearch_jax.core.gguf_file import is_gguf

Values = dict[str, list[float]]
TARGETS = {
    "sft.ratio_to_torch": (">=", 1.0),
    "decode.b8.ratio_to_transformers": (">=", 1.5),
    "decode.b32.ratio_to_transformers": (">=", 1.5),
    "import.ratio_to_transformers": ("<=", 2.0),
}
_TOKENS = 16  # of the first forward pass


def ours(source: Path) -> float:
    """Seconds until a first forward pass with our weights is done."""
    import jax

    from masksearch_jax.models import hf
    from masksearch_jax.models.transformer import Transformer

    ids = np.arange(_TOKENS, dtype=np.int32)[None]
    jax.block_until_ready(jax.numpy.zeros(1))  # the client is made
    started = time.perf_counter()
    model = hf.load(source, COMPUTE)
    jax.block_until_ready(jax.jit(Transformer.hidden)(model, ids, ids, np.ones_like(ids)))
    return time.perf_counter() - started


def theirs(source: Path) -> float:
    """Seconds until a first forward pass of transformers is done."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(train_step.THREADS)
    ids = torch.arange(_TOKENS)[None]
    started = time.perf_counter()
    where = {"gguf_file": source.name} if is_gguf(source) else {}
    folder = source.parent if where else source
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where).eval()
    with torch.inference_mode():
        model.model(ids)
    return time.perf_counter() - started


SIDES = {"ours": ours, "transformers": theirs}


def seconds(side: str, source: Path) -> float:
    command = [sys.executable, "-m", "benchmarks.real_model", f"--load={side}:{source}"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return float(done.stdout.strip().splitlines()[-1])


def importing(sources: dict[str, Path], repeats: int) -> Values:
    values: Values = defaultdict(list)
    for _ in range(repeats):
        for name, source in sources.items():
            found = {side: seconds(side, source) for side in SIDES}
            for side, spent in found.items():
                values[f"{name}{side}_seconds"].append(spent)
            ratio = found["ours"] / found["transformers"]
            values[f"{name}ratio_to_transformers"].append(ratio)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--init", help="a Hugging Face folder or a GGUF file")
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--only", default="sft,decode,import", help="sections, by comma")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        side, source = args.load.split(":", 1)
        print(SIDES[side](Path(source)))
        return
    from masksearch_jax.models import hf

    about = rollout.versions() | {"threads": train_step.THREADS, "load": os.getloadavg()[0]}
    print(*(f"{name} {value}" for name, value in about.items()), sep=", ", flush=True)
    source, values = Path(args.init), {}
    model = hf.load(source, COMPUTE)
    with tempfile.TemporaryDirectory(prefix="real-model-") as made:
        folder = Path(made)
        for name in args.only.split(","):
            if name == "sft":
                found = train_step.against_torch("real", args.repeats, folder, model)
            elif name == "decode":
                found, notes = rollout_decode.measure(model, args.repeats)
                print(notes or "", flush=True)
            else:
                hf.save(model, folder / "folder", generation_config={})
                sources = {"": folder / "folder"} | ({"gguf_": source} if is_gguf(source) else {})
                found = importing(sources, args.repeats)
            found = {f"{name}.{key}": value for key, value in found.items()}
            print(f"\n{rollout.table(found, TARGETS)}", flush=True)
            values |= found
    if args.json:
        figures = {"versions": about, "repeats": args.repeats}
        figures |= {"medians": {key: statistics.median(v) for key, v in values.items()}}
        Path(args.json).write_text(json.dumps(figures | {"values": values}, indent=1) + "\n")


if __name__ == "__main__":
    main()
