"""An exported folder as the loaders of vLLM and SGLang read it: by transformers' own classes.

Neither server can be installed without its GPU build. Both read `config.json` by AutoConfig, look
the class of `architectures` up, and read tokenizer and generation settings by these classes.
"""

import dataclasses
import json

import pytest

from masksearch_jax import export_hf
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.models.hf_card import Card
from masksearch_jax.testing.models import random_model
from tests.models.hf_folders import FAMILIES

SERVED = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}


@pytest.mark.slow  # transformers is imported
@pytest.mark.parametrize("name", ["qwen2-untied", "qwen3", "llama3"])
def test_a_folder_says_all_that_a_server_asks(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = train_bpe(["a town by a river"], tmp_path / "tokenizer", 300)
    vocab = Vocab.load(tokenizer)
    shape = dataclasses.replace(FAMILIES[name], vocab_size=vocab.size)
    folder = tmp_path / "model"
    export_hf.export(random_model(shape), folder, tokenizer, card=Card(), reload="table")

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
