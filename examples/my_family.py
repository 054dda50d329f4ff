"""A model family of your own: Mistral, which is computed as Qwen2 is, without biases.

An installed package of yours names it under the `model_type` of its config.json. In pyproject.toml:

    [project.entry-points."masksearch_jax.families"]
    mistral = "my_family:MISTRAL"

Every command then reads a folder of that family, and `export_hf` writes one:

    python -m masksearch_jax.evaluate --config=configs/evaluate.py:hf --config.init=FOLDER \\
        --config.tokenizer=FOLDER
"""

from __future__ import annotations

from masksearch_jax.models.families import Family

MISTRAL = Family(
    architecture="MistralForCausalLM",  # the class of transformers that reads what is exported
    fixed={"sliding_window": None},  # attention within a window is not computed, and refused
)
