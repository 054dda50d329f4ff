"""Names of an HF folder's tensors that are not those of the table, and why they are not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from masksearch_jax.models.hf_config import PEFT_ADVICE

HEAD = "lm_head.weight"
_INNER = "model."  # in front of all names but the head's
# Rotary tables that older files hold: the config decides them.
_BUFFER = re.compile(r"(^|\.)rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$")
_ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|base_layer)\.")
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|weight_packed|weight_shape|weight_scale|weight_scale_inv"
    r"|input_scale|SCB|weight_format|absmax|quant_map|weight\.(absmax|quant_map|quant_state\..*))$"
)
# What wrappers of a torch module put into the names of its tensors, anywhere.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "module.": "DataParallel",
}
_WRAPPED = re.compile("|".join(re.escape(piece) for piece in _WRAPPERS))


def is_derived(name: str) -> bool:
    """Whether a tensor of this name is a buffer that follows from the config."""
    return bool(_BUFFER.search(name))


def difference(expected: Iterable[str], actual: Iterable[str]) -> str:
    """What tells the names found from those expected, with the cause where it is known; or ""."""
    expected, actual = list(expected), list(actual)
    missing = [name for name in expected if name not in set(actual)]
    extra = sorted(set(actual) - set(expected))
    if adapters := [name for name in extra if _ADAPTER.search(f".{name}")]:
        return f"its tensors are those of a PEFT adapter ({_two(adapters)}); {PEFT_ADVICE}"
    if quantised := [name for name in extra if _QUANTISED.search(name)]:
        return (
            f"its weights are quantised ({_two(quantised)}); give the folder of the model that "
            "they were made from"
        )
    if renamed := _renamed(missing, extra):
        return renamed
    if missing == [HEAD] and not extra:
        return (
            f"{HEAD} is missing; if the head is the embedding table, as in tied models, set "
            "tie_word_embeddings to true in its config.json"
        )
    if missing:
        return f"{len(missing)} tensors are missing: {missing[:5]}{_instead(extra)}"
    return f"{len(extra)} tensors have no place: {extra[:5]}" if extra else ""


def _renamed(missing: Sequence[str], extra: Sequence[str]) -> str:
    """That all missing ones are there under other names, two of which it gives; or ""."""
    if not (inner := [name for name in missing if name.startswith(_INNER)]):
        return ""
    wrapped = [name for name in extra if _WRAPPED.search(name)]
    if wrapped and set(inner) <= {_WRAPPED.sub("", name) for name in wrapped}:
        found = dict.fromkeys(piece for name in wrapped for piece in _WRAPPED.findall(name))
        pieces = " and ".join(map(repr, found))
        return (
            f"its tensors have {pieces} in their names ({_two(wrapped)}), of "
            f"{' and '.join(_WRAPPERS[piece] for piece in found)}: save the module that is "
            f"wrapped, or take {pieces} out of the names"
        )
    for first in extra:
        prefix = first.removesuffix(inner[0].removeprefix(_INNER))
        others = {prefix + name.removeprefix(_INNER) for name in inner}
        if prefix != first and others <= set(extra):
            begin = f"begin with {prefix!r}" if prefix else f"lack the {_INNER!r} in front"
            return (
                f"the names of its tensors {begin} ({_two(sorted(others))}); expected are names "
                f"such as {inner[0]}: save the whole AutoModelForCausalLM, or rename them"
            )
    return ""


def _instead(extra: Sequence[str]) -> str:
    return f"; {len(extra)} have no place: {_two(extra)}" if extra else ""


def _two(names: Sequence[str]) -> str:
    return ", ".join(names[:2])
