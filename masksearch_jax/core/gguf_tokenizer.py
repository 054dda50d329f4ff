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

_AT = "tokenizer.ggml"  # before the keys of a file's tokenizer
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

    Raises GgufError for a tokenizer that is not byte-level, or cuts text in a way of no known name,
    or is not whole.
    """
    header = gguf_file.read_header(path)
    if (kind := header.need("tokenizer.ggml.model")) != "gpt2":
        raise GgufError(f"{path}: its tokenizer is {kind!r}; only 'gpt2', byte-level BPE, is read")
    if (pieces := header.get("tokenizer.ggml.pre")) is None:
        raise GgufError(
            f"{path} has no tokenizer.ggml.pre, the way to cut text; find out that of the model "
            f"and write it (gguf-new-metadata --pre-tokenizer NAME): {', '.join(PIECES)}"
        )
    if pieces not in PIECES:
        choices = ", ".join(PIECES)
        raise GgufError(f"{path}: tokenizer.ggml.pre is {pieces!r}, which is not one of {choices}")
    tokens = _listed(header, "tokens", str)
    types = _listed(header, "token_type", int, [1] * len(tokens))
    if len(types) != len(tokens):
        raise GgufError(
            f"{path}: {_AT}.token_type is of {len(types)} tokens; there are {len(tokens)}"
        )
    vocab = {t: i for i, t in enumerate(tokens) if types[i] != _UNUSED}
    merges = _merges(header, vocab)
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


def _listed(header: gguf_file.Header, key: str, kind: type, default: Any = None) -> list[Any]:
    """A list of the tokenizer. Raises GgufError for anything else."""
    found = header.need(f"{_AT}.{key}", default)
    if not isinstance(found, list) or not all(type(one) is kind for one in found):
        said = f"{found!r:.80}; it must be a list of {kind.__name__}"
        raise GgufError(f"{header.path}: {_AT}.{key} is {said}")
    return found


def _merges(header: gguf_file.Header, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of tokens that become one. Raises GgufError for what the library would not take."""
    merges = []
    for merge in _listed(header, "merges", str):
        first, _, second = merge.partition(" ")
        if not vocab.keys() >= {first, second, first + second}:
            said = f"{merge!r}; it must be two tokens whose whole is one too"
            raise GgufError(f"{header.path}: {_AT}.merges has {said}")
        merges.append((first, second))
    return merges


def _id(header: gguf_file.Header, key: str, tokens: list[str]) -> int | None:
    """The id of a token by its part. Raises GgufError where there is no such token."""
    found = header.get(f"{_AT}.{key}_token_id")
    if found is not None and (type(found) is not int or not 0 <= found < len(tokens)):
        said = f"{found!r}; it must be one of its tokens, 0 to {len(tokens) - 1}"
        raise GgufError(f"{header.path}: {_AT}.{key}_token_id is {said}")
    return found


def _config(header: gguf_file.Header, tokens: list[str]) -> JsonObject:
    config: JsonObject = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    ids = {
        name: _id(header, key, tokens)
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    config |= {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}
    ends = (ids["eos"], _id(header, "eot", tokens))
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
