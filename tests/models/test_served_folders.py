"""An exported folder as the loaders of vLLM and SGLang read it: by transformers' own classes.

Both read `config.json` by AutoConfig, look the class of `architectures` up, and read tokenizer and
generation settings by these classes. Where vLLM is installed, its own classes read the folder too.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from masksearch_jax import export_hf
from masksearch_jax.core.config import ModelConfig
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.models.hf_card import Card
from masksearch_jax.testing.models import random_model
from tests.models.hf_folders import FAMILIES

SERVED = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
VLLM = """
import dataclasses, json, sys
from vllm.model_executor.models.registry import ModelRegistry
from vllm.transformers_utils import config
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase
for folder in sys.argv[1:]:
    read = config.get_config(folder, trust_remote_code=False)
    text = config.get_hf_text_config(read)
    found = dataclasses.asdict(ModelArchConfigConvertorBase(read, text).convert())
    ends = config.try_get_generation_config(folder, trust_remote_code=False).eos_token_id
    is_served = set(found["architectures"]) <= set(ModelRegistry.get_supported_archs())
    print(json.dumps(found | {"ends": ends, "is_served": is_served}))
"""


def exported(name: str, folder: Path) -> tuple[ModelConfig, Vocab]:
    """A small model of a family, exported to FOLDER/model with a tokenizer."""
    tokenizer = train_bpe(["a town by a river"], folder / "tokenizer", 300)
    vocab = Vocab.load(tokenizer)
    shape = dataclasses.replace(FAMILIES[name], vocab_size=vocab.size)
    how = {"card": Card(), "reload": "table"}
    export_hf.export(random_model(shape), folder / "model", tokenizer, **how)
    return shape, vocab


@pytest.mark.slow  # transformers is imported
@pytest.mark.parametrize("name", ["qwen2-untied", "qwen3", "llama3"])
def test_a_folder_says_all_that_a_server_asks(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    shape, vocab = exported(name, tmp_path)
    folder = tmp_path / "model"
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.architectures == [SERVED[shape.family]]
    assert hasattr(transformers, SERVED[shape.family])
    assert (config.num_hidden_layers, config.hidden_size) == (shape.num_layers, shape.hidden_size)
    assert (config.num_attention_heads, config.num_key_value_heads) == (
        shape.num_heads,
        shape.num_kv_heads,
    )
    assert config.head_dim == shape.head_dim
    assert config.max_position_embeddings == shape.max_position  # the servers' longest context
    assert config.tie_word_embeddings == shape.tie_embeddings
    assert config.vocab_size == vocab.size

    read = transformers.AutoTokenizer.from_pretrained(folder)
    text = "<think>a town</think><search>river</search>"
    assert read.encode(text, add_special_tokens=False) == vocab.encode(text)
    asked = [{"role": "user", "content": "a town?"}]
    rendered = read.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert rendered == vocab.apply_chat_template(asked)
    ends = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
    assert ends == list(vocab.eos_ids) == config.eos_token_id

    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    assert {p.name for p in folder.glob("*.safetensors")} == (files or {"model.safetensors"})


@pytest.mark.slow  # a heavy package
def test_vllms_own_classes_read_a_folder(tmp_path):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    names = ("qwen2-untied", "qwen3", "llama3")
    made = [exported(name, tmp_path / name) for name in names]
    done = subprocess.run(
        [sys.executable, "-c", VLLM, *(str(tmp_path / name / "model") for name in names)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for (shape, vocab), row in zip(made, rows, strict=True):
        assert row["architectures"] == [SERVED[shape.family]]
        assert row["is_served"]
        sizes = {
            "hidden_size": shape.hidden_size,
            "total_num_hidden_layers": shape.num_layers,
            "total_num_attention_heads": shape.num_heads,
            "total_num_kv_heads": shape.num_kv_heads,
            "head_size": shape.head_dim,
            "vocab_size": vocab.size,
            "derived_max_model_len_and_key": [shape.max_position, "max_position_embeddings"],
            "quantization_config": None,
            "ends": list(vocab.eos_ids),
        }
        assert {key: row[key] for key in sizes} == sizes
