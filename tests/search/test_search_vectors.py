"""The benchmark of recall by words and vectors: fusion by half of the questions; it goes on."""

import pytest

from benchmarks.kept_rows import KeptRows
from benchmarks.search_vectors import FUSIONS, measure
from masksearch_jax.core.types import Passage
from masksearch_jax.models.encoder_folder import TextEncoder
from masksearch_jax.search import bm25, vectors
from tests.models.bert_folders import WORDS, write_cross_encoder, write_encoder

PASSAGES = [Passage(str(i), WORDS[i % 9], " ".join(WORDS[i % 9 : i % 9 + 3])) for i in range(40)]
QUESTIONS = [{"question": WORDS[i], "gold": [str(i)], "dataset": "rivers"} for i in range(8)]


@pytest.mark.slow
def test_fusion_is_chosen_on_half_of_the_questions_and_a_stopped_run_goes_on(tmp_path):
    for name, write in (("encoder", write_encoder), ("rerank", write_cross_encoder)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    index, path, rerank = str(tmp_path / "index"), str(tmp_path / "rows"), str(tmp_path / "rerank")
    bm25.build(PASSAGES, index)
    opened, where = bm25.BM25.open(index), vectors.folder_of(index)
    encoder = TextEncoder(tmp_path / "encoder")
    vectors.build(opened.passages, where, encoder, index=opened.fingerprint)
    chosen, tried = FUSIONS[4], {"what": "fusion", "kind": "hybrid"}
    kept = KeptRows(path, {})
    for fusion in FUSIONS:
        kept.add(tried | fusion | {"mean": float(fusion == chosen)})
    rows = measure(index, QUESTIONS, rerank, KeptRows(path, {}))
    assert [(row["kind"], row["rerank"], row.get("nearest")) for row in rows] == [
        ("bm25", "", None),
        ("hybrid", "", None),
        ("hybrid", rerank, None),
        ("dense", "", "exact"),
        ("dense", "", "device"),
        ("dense", "", "device_approximate"),
    ]
    assert all(chosen.items() <= row.items() for row in rows[1:3])
    assert rows[3]["recall"] == rows[4]["recall"]
    assert rows[0]["recall"] == {"rivers": {"2": 100.0, "5": 100.0, "10": 100.0}}
    written = KeptRows(path, {}).rows
    told = next(row for row in written if row["what"] == "encoding")
    assert told["bytes_per_passage"] == 32
    assert min(told["repeats"]["ours.passages_per_second"]) > 0
    assert measure(index, QUESTIONS, rerank, KeptRows(path, {})) == rows  # with their times
