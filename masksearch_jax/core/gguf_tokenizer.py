"""The tokenizer inside a GGUF file, as the tokenizers library has it, and as an HF folder's files.

Of a file's tokenizer GGUF keeps tokens, merges and the name of a way to cut text into pieces. What
the name means is said here, for byte-level tokenizers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from masksearch_jax.core import gguf_file
from masksearch_jax.core.gguf_file import GgufError
from masksearch_jax.core.types import JsonObject

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # of tokenizer.ggml.token_type
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _by(pattern: str) -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])


def _pieces(name: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut into pieces, by the file's `tokenizer.ggml.pre`."""
    own = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), own])
    if name == "qwen2":
        return _by(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}")
    if name == "llama-bpe":
        return _by(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}")
    return own


PIECES = ("gpt-2", "llama-bpe", "qwen2", "smollm")


def read(path: str | Path) -> tuple[Tokenizer, JsonObject, str]:
    """The tokenizer, its tokenizer_config.json and its chat template, which may be empty.

    Raises GgufError for a tokenizer that is not byte-level, or cuts text in a way of no known name.
    """
    header = gguf_file.read_header(path)
    kind, pieces = header.need("tokenizer.ggml.model"), header.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise GgufError(f"{path}: its tokenizer is {kind!r}; only 'gpt2', byte-level BPE, is read")
    if pieces not in PIECES:
        choices = ", ".join(PIECES)
        raise GgufError(f"{path}: tokenizer.ggml.pre is {pieces!r}, which is not one of {choices}")
    tokens = header.need("tokenizer.ggml.tokens")
    types = header.get("tokenizer.ggml.token_type", [1] * len(tokens))
    merges = [tuple(m.split(" ")) for m in header.need("tokenizer.ggml.merges")]
    vocab = {t: i for i, t in enumerate(tokens) if types[i] != _UNUSED}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pieces == "llama-bpe"))
    if pieces == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer, tokenizer.decoder = _pieces(pieces), decoders.ByteLevel()
    added = [i for i, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_tokens(
        [AddedToken(tokens[i], normalized=False, special=types[i] == _CONTROL) for i in added]
    )
    config = _config(header, tokens)
    if header.get("tokenizer.ggml.add_bos_token", pieces == "llama-bpe") and "bos_token" in config:
        _begin_with(tokenizer, config["bos_token"])
    return tokenizer, config, header.get("tokenizer.chat_template", "")


def write(path: str | Path, folder: Path) -> None:
    """Writes what `read` reads as the files of an HF tokenizer folder."""
    tokenizer, config, template = read(path)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {key: value for key, value in config.items() if key != "eos_token_id"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=2), encoding="utf-8")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _config(header: gguf_file.Header, tokens: list[str]) -> JsonObject:
    config: JsonObject = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    ids: dict[str, Any] = {
        name: header.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    config |= {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}
    ends = (ids["eos"], header.get("tokenizer.ggml.eot_token_id"))
    return config | {"eos_token_id": [i for i in ends if i is not None]}


def _begin_with(tokenizer: Tokenizer, bos: str) -> None:
    """Makes texts, but not what is encoded without special tokens, begin with a token."""
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos}:1 $B:1",
                special_tokens=[(bos, tokenizer.token_to_id(bos))],
            ),
        ]
    )
