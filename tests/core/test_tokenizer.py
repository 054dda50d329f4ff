"""The tokenizer folder: exact bytes, determinism, parity with transformers, clear refusals."""

import base64
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from masksearch_jax.core import markup
from masksearch_jax.core import tokenizer as vocab_lib
from masksearch_jax.core.tokenizer import EOS, PAD, Vocab, VocabError, train_bpe
from tests.core.texts import TEXTS

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is Oslo?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_bpe(TEXTS, tmp_path_factory.mktemp("vocab") / "tokenizer", 420)


@pytest.fixture(scope="module")
def vocab(folder):
    return Vocab.load(folder)


def test_has_the_size_asked_for_and_the_tags_as_single_tokens(vocab):
    assert vocab.size == 420
    assert vocab.token_bytes(vocab.eos_ids[0]) == EOS.encode()
    assert vocab.token_bytes(vocab.pad_id) == PAD.encode()
    for token in (markup.MASK, *markup.TAG_TOKENS):
        assert [vocab.decode([i]) for i in vocab.encode(f"a{token}b")] == ["a", token, "b"]


def test_each_digit_is_a_token(vocab):
    ids = vocab.encode("in 2020, 148")
    digits = [
        vocab.token_bytes(i) for i in ids if any(chr(b).isdigit() for b in vocab.token_bytes(i))
    ]
    assert digits == [b"2", b"0", b"2", b"0", b"1", b"4", b"8"]


def test_words_with_their_leading_space_are_merged(vocab):
    assert [vocab.token_bytes(i) for i in vocab.encode("the city of")][-2:] == [b" city", b" of"]


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60), literal=st.booleans())
def test_bytes_of_the_tokens_are_the_text(vocab, text, literal):
    ids = vocab.encode(text, literal=literal)
    assert b"".join(map(vocab.token_bytes, ids)) == text.encode()
    assert vocab.decode(ids) == text


@settings(max_examples=50)
@given(st.lists(st.sampled_from([*markup.TAG_TOKENS, "[mask]", " ", "\n", "é", "1", "city"])))
def test_tagged_text_comes_back_exactly(vocab, parts):
    text = "".join(parts)
    assert vocab.decode(vocab.encode(text)) == text
    assert vocab.encode(text, literal=True) == vocab.encode(text)


def test_a_token_may_end_inside_a_character(vocab):
    ids = vocab.encode("字")
    assert len(ids) > 1, "the case needs a character of several tokens"
    assert vocab.decode(ids[:1]) == "\ufffd"
    assert b"".join(map(vocab.token_bytes, ids)).decode() == "字"


def test_literal_text_cannot_hold_control_tokens(vocab):
    text = f"stop {EOS} here"
    assert vocab.eos_ids[0] in vocab.encode(text)
    assert vocab.eos_ids[0] not in vocab.encode(text, literal=True)
    assert vocab.decode(vocab.encode(text, literal=True)) == text


def test_batches_equal_single_texts(vocab):
    assert vocab.encode_batch(TEXTS[:3]) == [vocab.encode(t) for t in TEXTS[:3]]
    texts = [f"a {EOS}", ""]
    assert vocab.encode_batch(texts, literal=True) == [vocab.encode(t, literal=True) for t in texts]


def test_ids_past_the_end_are_empty_and_negative_ones_an_error(vocab):
    assert vocab.decode([vocab.size, *vocab.encode("Oslo"), 10**6]) == "Oslo"
    with pytest.raises(VocabError, match="-1 is negative"):
        vocab.token_bytes(-1)


def test_training_is_deterministic_over_processes(folder, tmp_path):
    code = (
        "import sys; from masksearch_jax.core.tokenizer import train_bpe;"
        "from tests.core.texts import TEXTS;"
        "train_bpe(TEXTS, sys.argv[1], 420)"
    )
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "again")],
        check=True,
        cwd=root,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(root), "PATH": ""},
    )
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_training_replaces_an_older_folder_and_leaves_nothing_beside_it(tmp_path):
    train_bpe(TEXTS, tmp_path / "t", 400)
    first = Vocab.load(tmp_path / "t").fingerprint
    train_bpe(TEXTS, tmp_path / "t", 410)
    assert Vocab.load(tmp_path / "t").size == 410
    assert Vocab.load(tmp_path / "t").fingerprint != first
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_vocabulary_without_room_for_the_bytes_is_refused(tmp_path):
    with pytest.raises(VocabError, match=r"vocab_size=100 is too small.*at least 269"):
        train_bpe(TEXTS, tmp_path / "t", 100)
    assert not list(tmp_path.iterdir())


def test_transformers_reads_the_folder_the_same_way(folder, vocab, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = f"<think>2020 Château 字</think> x [mask]\n<search>q</search> {EOS}"
    assert theirs.encode(text, add_special_tokens=False) == vocab.encode(text)
    assert theirs.decode(vocab.encode(text)) == text
    assert (theirs.eos_token_id, theirs.pad_token_id) == (vocab.eos_ids[0], vocab.pad_id)
    for ask in (True, False):
        rendered = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=ask)
        assert rendered == vocab.apply_chat_template(MESSAGES, add_generation_prompt=ask)
    theirs.save_pretrained(tmp_path / "saved")
    assert Vocab.load(tmp_path / "saved").fingerprint == vocab.fingerprint


def test_end_tokens_of_the_generation_config_count_too(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    own = Vocab.load(folder).eos_ids
    assert Vocab.load(tmp_path).eos_ids == (*own, 3, 5)


def test_another_template_is_another_fingerprint(folder, vocab, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no roles') }}")
    other = Vocab.load(tmp_path)
    assert other.fingerprint != vocab.fingerprint
    with pytest.raises(VocabError, match="no roles"):
        other.apply_chat_template(MESSAGES)


def with_template(folder, to, template, **config):
    """A copy of the folder with another template and more in its tokenizer_config.json."""
    shutil.copytree(folder, to)
    (to / "chat_template.jinja").write_text(template)
    path = to / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return to


@pytest.mark.parametrize(
    "template",
    [
        (
            "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}"
            "{% endgeneration %}{% endfor %}"
        ),
        "{{ strftime_now('%Y, %B') }}|{{ strftime_now is defined }}",
        "{{ messages|tojson }}{{ messages|tojson(indent=2) }}{{ {'ß': '<&>'}|tojson }}",
        "{{ messages|tojson(separators=(',', ':'), sort_keys=true) }}",
        "{{ {'ß': 'é'}|tojson(ensure_ascii=true) }}",
        "{{ tools is none }}{{ tools is defined }}{{ documents is none }}{{ nothing is defined }}",
        (
            "{% set ns = namespace(found=false) %}{% for m in messages %}{% if m.role == 'user' %}"
            "{% set ns.found = true %}{% break %}{% endif %}{% endfor %}{{ ns.found }}"
        ),
        "{{ bos_token is defined }}{{ pad_token }}{{ eos_token }}{{ unk_token is defined }}",
        "{{ add_bos_token is defined }}{{ image_token is defined }}",
        "{{ dict(a=1)|tojson }}{{ messages[0]['content'].split(' ')[-1] }}",
        "   {%- if add_generation_prompt %}\n  {{ raise_exception is defined }}\n  {% endif %}\n",
        "{% for m in messages %}{{ m.thinking is defined }}{{ m.content|trim }}{% endfor %}",
    ],
)
def test_a_template_gets_what_transformers_gives_it(folder, tmp_path, template):
    transformers = pytest.importorskip("transformers")
    named = {"bos_token": {"__type": "AddedToken", "content": EOS}, "add_bos_token": True}
    place = with_template(folder, tmp_path / "t", template, unk_token=None, **named)
    theirs = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    for ask in (True, False):
        rendered = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=ask)
        found = Vocab.load(place).apply_chat_template(MESSAGES, add_generation_prompt=ask)
        assert found == rendered


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('only two\nroles') }}", "fails: TemplateError: only two roles"),
        ("{{ messages[0]['content']['text']['part'] }}", "fails: UndefinedError: "),
        ("{{ messages[0].content + 1 }}", "fails: TypeError: can only concatenate"),
        ("{% for m in messages %}{{ m.content }}", "fails: TemplateSyntaxError: "),
        ("{{ messages[0].content | lastly }}", "fails: TemplateAssertionError: No filter named"),
        ("{{ messages.append(1) }}", "fails: SecurityError: "),
        ("{% for p in messages[0].content %}{{ p.text }}{% endfor %}", "leaves out what a user"),
        ("{{ '<|im_start|>assistant' }}", "leaves out what a user says"),
    ],
)
def test_a_template_that_fails_is_one_line_that_names_the_folder(folder, tmp_path, template, said):
    vocab = Vocab.load(with_template(folder, tmp_path / "t", template))
    with pytest.raises(VocabError) as error:
        vocab.check_chat_template()
    assert str(error.value).startswith(f"the chat template of '{tmp_path / 't'}' {said}")
    assert "\n" not in str(error.value)


def test_the_templates_renderer_needs_no_torch_and_says_nothing(folder):
    code = """
import importlib.abc, importlib.util, sys
class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "jax", "tensorflow"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "torch" else find(name, *a)
from masksearch_jax.core.tokenizer import Vocab
vocab = Vocab.load(sys.argv[1])
assert "transformers" not in sys.modules
print(vocab.apply_chat_template([{"role": "user", "content": "Hello"}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n\n",
        "",
    )


def test_a_folder_without_template_is_named(folder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(VocabError, match=f"tokenizer '{tmp_path}' has no chat template"):
        Vocab.load(tmp_path).apply_chat_template(MESSAGES)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"org/model.*not a local folder"):
        Vocab.load("org/model")
    (tmp_path / "weights.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json; it has \['weights\.bin'\]"):
        Vocab.load(tmp_path)


def test_broken_and_unsuitable_tokenizers_are_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(VocabError, match=r"tokenizer\.json cannot be read"):
        Vocab.load(tmp_path)
    Tokenizer(models.WordLevel({"▁a": 0, EOS: 1}, unk_token="▁a")).save(
        str(tmp_path / "tokenizer.json")
    )
    with pytest.raises(VocabError, match="'▁a' is not byte-level"):
        Vocab.load(tmp_path)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("core.tokenizer", ("transformers", "torch", "tensorflow", "seqio", "jax")),
        ("data.cache", ("transformers", "torch", "tensorflow", "seqio", "jax")),
        ("data.batches", ("transformers", "torch", "tensorflow", "seqio")),
    ],
)
def test_import_brings_in_no_framework(module, absent):
    code = f"import sys, masksearch_jax.{module};print([m for m in {absent} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert out.stdout.strip() == "[]", out.stderr


@pytest.mark.slow
def test_a_qwen_tokenizer_folder_loads_and_keeps_its_ids(tmp_path, shared_data):
    path = shared_data / "tokenizers" / "qwen.tiktoken"
    if not path.is_file():
        pytest.skip(f"no Qwen ranks at {path}")
    ranks = _ranks(path)
    _save_qwen(ranks, tmp_path)
    vocab = Vocab.load(tmp_path)
    assert vocab.eos_ids == (len(ranks),)
    assert vocab.size == len(ranks) + 3
    text = "Hello, world! 漢字 naïve 2024\n"
    ids = vocab.encode(text)
    assert ids[:4] == [9707, 11, 1879, 0]  # published ids of Qwen2 for "Hello, world!"
    assert [ranks[vocab.token_bytes(i)] for i in ids] == ids
    assert vocab.decode(ids) == text
    assert vocab.decode(vocab.encode("<search>q</search>")) == "<search>q</search>"


def _ranks(path: Path) -> dict[bytes, int]:
    lines = (line.split() for line in path.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _save_qwen(ranks: dict[bytes, int], folder: Path) -> None:
    """A tokenizers BPE equal to the tiktoken ranks: each token is merged from two parts."""
    bytes_to_char = {b: c for c, b in vocab_lib._byte_of_char().items()}
    spell = {t: "".join(bytes_to_char[b] for b in t) for t in ranks}
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            left, right = _parts(token, ranks, rank)
            merges.append((spell[left], spell[right]))
    tokenizer = Tokenizer(models.BPE({spell[t]: r for t, r in ranks.items()}, merges))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS, "<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}))


def _parts(token: bytes, ranks: dict[bytes, int], rank: int) -> list[bytes]:
    """The two tokens that `token` is merged from: BPE with the merges before its own."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts
