"""What transformers computes from an HF folder, in a child process: only that one needs torch.

python -m masksearch_jax.models.reload_check FOLDER PROMPTS.npy TOKENS OUT.npz
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


class ReloadError(Exception):
    """transformers cannot load a folder."""


def has_transformers() -> bool:
    """True where torch and transformers are installed; imports neither."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def reference(
    folder: str | Path, prompts: np.ndarray, tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """float32 logits [B, T, V] of prompts int32[B, T], and `tokens` greedy ids [B, N] after them.

    Raises ReloadError with the child's last words when transformers cannot load the folder.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given, out = Path(scratch, "prompts.npy"), Path(scratch, "out.npz")
        np.save(given, prompts)
        command = [sys.executable, "-m", __name__, str(folder), str(given), str(tokens), str(out)]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        if child.returncode:
            words = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
            raise ReloadError(f"transformers could not reload {folder}: {words[-1]}")
        with np.load(out) as found:
            return found["logits"], found["greedy"]


def _main(folder: str, prompts: str, tokens: str, out: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.from_numpy(np.load(prompts).astype(np.int64))
    with torch.no_grad():
        logits = model(ids).logits
        width = ids.shape[1]
        for _ in range(int(tokens)):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    np.savez(out, logits=logits.numpy(), greedy=ids[:, width:].numpy().astype(np.int32))


if __name__ == "__main__":
    _main(*sys.argv[1:])
