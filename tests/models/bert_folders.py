"""Folders of small random encoders of BERT's family, as sentence-transformers writes them."""

import json

import tokenizers
import torch
import transformers

TEXT = "the river ember flows through town of red green fruit tree query : passage a b c"
WORDS = TEXT.split()


def write_encoder(folder, *, pooling="mean", normalised=True, prompts=None, seed=0, **changes):
    """Writes a random BERT of 2 layers and its word tokenizer; the model as torch has it."""
    model = _write_model(transformers.BertModel, folder, seed, **changes)
    _write_tokenizer(folder)
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(steps[: 3 if normalised else 2])
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {
        "word_embedding_dimension": 16,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_max_tokens": pooling == "max",
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    if prompts:
        path = folder / "config_sentence_transformers.json"
        path.write_text(json.dumps({"prompts": prompts}))
    return model


def reference(model, ids, pooling, normalised):
    """One text's vector by transformers: float32 [M]."""
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    vector = hidden[0] if pooling == "cls" else hidden.mean(0)
    vector = torch.nn.functional.normalize(vector, dim=0) if normalised else vector
    return vector.numpy()


def write_cross_encoder(folder, *, seed=0, **changes):
    """Writes a random BERT of 2 layers that scores pairs; the model as torch has it."""
    changes = {"num_labels": 1} | changes
    model = _write_model(transformers.BertForSequenceClassification, folder, seed, **changes)
    _write_tokenizer(folder)
    return model


def _write_model(kind, folder, seed, **changes):
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=48,
        initializer_range=0.4,
        **changes,
    )
    model = kind(config).eval()
    model.save_pretrained(folder)
    return model


def _write_tokenizer(folder):
    """Of words, as transformers finds it too; a pair's second text has token type 1."""
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    names = ["input_ids", "token_type_ids", "attention_mask"]
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 48}
    told |= special | {"model_input_names": names}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]",
        "[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.save(str(folder / "tokenizer.json"))
