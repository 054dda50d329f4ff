"""A tokenizer folder in Hugging Face layout; transformers is imported for chat templates alone.

Byte-level tokenizers only (Qwen, Llama 3, GPT-2, and what `train_bpe` makes): there each token is a
byte string, so a token's place in the text is exact even where it ends inside a UTF-8 character.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from masksearch_jax.core import files, gguf_tokenizer, markup
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.gguf_file import is_gguf
from masksearch_jax.core.types import SEARCH_ALONE, JsonObject

EOS, PAD = "<|endoftext|>", "<|pad|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CONTROL_TOKENS = (EOS, PAD, TURN_START, TURN_END)

# A word with its leading space, a single digit, a run of symbols, white space.
_PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Tokens that a chat template knows by name, where tokenizer_config.json has them.
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_OLDER_FILES = ("vocab.json", "tokenizer.model", "tokenizer_config.json")


class VocabError(ValueError):
    """A tokenizer, or a use of one, that cannot work."""


def train_bpe(
    texts: Iterable[str],
    folder: str | Path,
    vocab_size: int = 2048,
    tools: Sequence[str] = SEARCH_ALONE,
) -> Path:
    """A byte-level BPE trained on `texts`, saved as an HF tokenizer folder of `vocab_size` tokens.

    `[mask]` and the grammar's tags, those of the `tools` among them, are single tokens that
    decoding keeps; each digit is a token. The folder appears whole or not at all; the same texts
    give the same bytes. Few texts give fewer tokens than asked for. Raises VocabError when
    `vocab_size` cannot hold the 256 bytes and the added tokens.
    """
    ours = (markup.MASK, *markup.tag_tokens(tools))
    added = [*CONTROL_TOKENS, *ours]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(added):
        raise VocabError(
            f"vocab_size={vocab_size} is too small: {len(alphabet)} bytes and {len(added)} added "
            f"tokens need at least {len(alphabet) + len(added)}"
        )
    tokenizer = _fit(_without(texts, added), vocab_size - len(added), alphabet)
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    tokenizer.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in ours])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    contents = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config, indent=2),
        "chat_template.jinja": _CHAT_TEMPLATE,
    }
    with files.writing_folder(folder) as partial:
        for name, text in contents.items():
            (partial / name).write_text(text, encoding="utf-8")
    return Path(folder)


def _fit(texts: Iterable[str], size: int, alphabet: list[str]) -> Tokenizer:
    """A byte-level BPE of at most `size` tokens, nothing added yet."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _without(texts: Iterable[str], added: Sequence[str]) -> Iterable[str]:
    """`texts` with added tokens cut out, so that no merge is spent on their spelling."""
    for text in texts:
        for token in added:
            text = text.replace(token, "\n")
        yield text


class Vocabulary(Protocol):
    """What rollouts and prompts ask of a tokenizer, as `Vocab` says it."""

    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int: ...

    def encode(self, text: str, *, literal: bool = False) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> str: ...


class Vocab:
    """A byte-level tokenizer: text to ids, ids to bytes and text, the chat template, a fingerprint.

    `size` is the largest id plus one. `eos_ids` are the ids that end a generation, the tokenizer's
    own first; `pad_id` is its padding id, or the first of `eos_ids` where it has none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: JsonObject,
        template: str = "",
        folder: str | Path = "",
    ) -> None:
        self._tokenizer = tokenizer
        self._folder = str(folder)
        self._config = config
        self._template = template
        ids = tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(ids.values()) + 1
        self.eos_ids = _eos_ids(config, ids)
        self.pad_id = ids.get(_token_text(config.get("pad_token")), self.eos_ids[0])
        self._bytes = _byte_table(tokenizer, self.size)

    @classmethod
    def load(cls, folder: str | Path, key: str = "config.tokenizer") -> Vocab:
        """The tokenizer saved in a local folder or GGUF file; never asks the network.

        Raises ConfigError naming the key for an empty `folder`, FileNotFoundError when the folder
        or its files are missing, VocabError for a tokenizer that is not byte-level.
        """
        if not os.fspath(folder).strip():
            raise ConfigError(f"{key} is empty; it must name the folder that holds tokenizer.json")
        folder = Path(folder)
        if not folder.is_dir() and not is_gguf(folder):
            raise FileNotFoundError(
                f"tokenizer {str(folder)!r} is not a local folder; download the model first and "
                "give the path of the folder that holds its tokenizer.json, or of its GGUF file"
            )
        try:
            if is_gguf(folder):
                return cls(*gguf_tokenizer.read(folder), folder)
            config = _read_config(folder)
            return cls(_read_tokenizer(folder), config, _read_template(folder, config), folder)
        except ValueError as error:  # also of JSON
            raise VocabError(f"tokenizer {str(folder)!r}: {error}") from error

    def encode(self, text: str, *, literal: bool = False) -> list[int]:
        """Ids of `text`, nothing added. `literal`: control tokens spelled in it stay plain text.

        Text from outside (a document, a teacher) is encoded with `literal=True`, so that an
        `<|endoftext|>` in it cannot act; the tags of the grammar are tokens either way.
        """
        return self._coder(literal).encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], *, literal: bool = False) -> list[list[int]]:
        """`encode` of each text, in parallel."""
        found = self._coder(literal).encode_batch_fast(list(texts), add_special_tokens=False)
        return [e.ids for e in found]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, tags and control tokens kept; invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token: joined over a sequence they are its text in UTF-8.

        Empty for an id in the padding of an embedding table. Raises VocabError for a negative id.
        """
        if token_id < 0:
            raise VocabError(f"token id {token_id} is negative; ids are 0..{self.size - 1}")
        return self._bytes[token_id] if token_id < self.size else b""

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """The messages as one prompt text, as transformers renders them.

        Raises VocabError naming the folder when it has no template, or one that fails.
        """
        if not self._template:
            raise VocabError(f"tokenizer {self._folder!r} has no chat template")
        render, names = _renderer(), (f"{name}_token" for name in _NAMED)
        tokens = {k: _token_text(self._config[k]) for k in names if self._config.get(k) is not None}
        try:
            (text,), _ = render(
                [list(messages)],
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                **tokens,
            )
        except Exception as error:  # a template may do anything
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise VocabError(f"the chat template of {self._folder!r} fails: {said}") from error
        return text

    def check_chat_template(self) -> None:
        """Raises VocabError when the template cannot write what a user says."""
        said = "Which thing?"
        if said not in self.apply_chat_template([{"role": "user", "content": said}]):
            raise VocabError(f"the chat template of {self._folder!r} leaves out what a user says")

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits of what decides ids and prompts; the same when transformers re-saves it."""
        return _hash(self._ids_spec() | {"eos": self.eos_ids, "template": self._template})

    @functools.cached_property
    def ids_fingerprint(self) -> str:
        """16 hex digits of what decides ids alone: what a model's weights are made for."""
        return _hash(self._ids_spec())

    def _ids_spec(self) -> JsonObject:
        spec = json.loads(self._tokenizer.to_str())
        return {k: spec[k] for k in ("model", "added_tokens", "normalizer", "pre_tokenizer")}

    def _coder(self, literal: bool) -> Tokenizer:
        return self._literal if literal else self._tokenizer

    @functools.cached_property
    def _literal(self) -> Tokenizer:
        copy = Tokenizer.from_str(self._tokenizer.to_str())
        copy.encode_special_tokens = True
        return copy


def _hash(parts: JsonObject) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _read_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise VocabError(f"tokenizer.json cannot be read: {error}") from error
    elif any((folder / name).is_file() for name in _OLDER_FILES):
        from transformers import AutoTokenizer  # slow to import; only for folders of the old layout

        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        tokenizer = loaded.backend_tokenizer
    else:
        raise FileNotFoundError(f"{str(folder)!r} holds no tokenizer.json; it has {_names(folder)}")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())[:10]


def _read_config(folder: Path) -> JsonObject:
    """tokenizer_config.json, with `eos_token_id` of generation_config.json where there is one."""
    config: JsonObject = {}
    path = folder / "tokenizer_config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
    path = folder / "generation_config.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        if found is not None:
            config["eos_token_id"] = found
    return config


def _read_template(folder: Path, config: JsonObject) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = config.get("chat_template") or ""
    if isinstance(found, list):  # several templates, by name
        found = {entry["name"]: entry["template"] for entry in found}.get("default", "")
    return found


def _token_text(token: str | JsonObject | None) -> str:
    """A token of a config, given as text or as a serialised AddedToken; empty when absent."""
    return token.get("content", "") if isinstance(token, Mapping) else token or ""


def _eos_ids(config: JsonObject, ids: Mapping[str, int]) -> tuple[int, ...]:
    own = ids.get(_token_text(config.get("eos_token")) or EOS)
    extra = config.get("eos_token_id", [])
    found = [*([own] if own is not None else []), *(extra if isinstance(extra, list) else [extra])]
    if not found:
        raise VocabError("no end-of-sequence token: tokenizer_config.json names no eos_token")
    return tuple(dict.fromkeys(found))


def _byte_table(tokenizer: Tokenizer, size: int) -> list[bytes]:
    """Bytes of each id 0..size-1. Raises VocabError where a token is not spelled in bytes."""
    to_byte = _byte_of_char()
    added = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items()}
    table = [b""] * size
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        if index in added:
            table[index] = added[index].encode()
        elif all(c in to_byte for c in token):
            table[index] = bytes(to_byte[c] for c in token)
        else:
            raise VocabError(
                f"token {index} {token!r} is not byte-level; supported are byte-level BPE "
                "tokenizers such as those of Qwen, Llama 3 and GPT-2"
            )
    return table


def _byte_of_char() -> dict[str, int]:
    """The byte that each printable stand-in of byte-level BPE means (GPT-2's table).

    Printable Latin-1 bytes stand for themselves; the others, in order, are U+0100 and on.
    """
    own = np.r_[0x21:0x7F, 0xA1:0xAD, 0xAE:0x100]
    others = np.setdiff1d(np.arange(256), own)
    return {chr(b): int(b) for b in own} | {chr(0x100 + i): int(b) for i, b in enumerate(others)}


@functools.cache
def _renderer() -> Callable[..., tuple[list[str], object]]:
    """What transformers renders chat templates with; it compiles each once."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of torch, not needed here
    from transformers.utils.chat_template_utils import render_jinja_template  # takes a second

    return render_jinja_template
