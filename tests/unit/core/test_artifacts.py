"""The types of the files that stages write for others: the same keys and bytes as the files have, anything else refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from fieldguide.core.artifacts import (
    Artifact,
    BenchmarkMetrics,
    ExportMetrics,
    Int8Comparison,
    Receipt,
    SplitCheckMetrics,
)
from fieldguide.core.errors import UserError
from fieldguide.core.files import write_json
from support import ROOT

METRICS = ROOT / "tests" / "support" / "metrics"  # of the sample
OF_A_RUN: dict[str, type[Artifact]] = {
    "split_check": SplitCheckMetrics,
    "export_onnx": ExportMetrics,
    "benchmark": BenchmarkMetrics,
}
RECEIPT = {
    "dataset": "folder",
    "title": "Own photographs",
    "home": "",
    "licence": "",
    "layout": "folders",
    "features": {"image": "image", "label": "class", "id": ""},
    "source": "my photos",
    "version": "",
    "release": "",
    "images": {"not yet split": 3},
    "ignored": {"outside_classes": 0, "other_files": 2},
    "files": {"images.zip": {"bytes": 9, "sha256": "0" * 64}},
}
LATENCY = {"p50": 1.0, "p95": 2.0, "p99": 3.0, "p50_rounds": [1.0, 1.5]}
END_TO_END = {"p50": 2.0, "p95": 3.0, "p99": 4.0}


@pytest.mark.parametrize("stage", OF_A_RUN)
def test_the_metrics_of_a_run_are_written_as_they_are(tmp_path: Path, stage: str) -> None:
    source = METRICS / f"{stage}.json"
    OF_A_RUN[stage].read(source).write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == source.read_bytes()


def same_bytes(kind: type[Artifact], content: dict[str, Any], folder: Path) -> Artifact:
    """What `kind` reads of the content; writes it again and compares."""
    write_json(folder / "plain.json", content)
    artifact = kind.read(folder / "plain.json")
    artifact.write(folder / "typed.json")
    assert (folder / "typed.json").read_bytes() == (folder / "plain.json").read_bytes()
    return artifact


def test_a_receipt_has_its_keys_in_their_order(tmp_path: Path) -> None:
    same_bytes(Receipt, RECEIPT, tmp_path)


def test_what_was_not_looked_for_is_null_and_has_its_key(tmp_path: Path) -> None:
    content = json.loads((METRICS / "split_check.json").read_text())
    content |= {"near_duplicates": {"across_splits": None, "within_split": None}, "train_images_per_class": None}
    same_bytes(SplitCheckMetrics, content, tmp_path)


def test_a_figure_that_a_backend_lacks_has_no_key_and_a_library_stands_beside_the_backends(tmp_path: Path) -> None:
    of_a_run = json.loads((METRICS / "benchmark.json").read_text())
    on_gpu = {
        "latency_ms": LATENCY,
        "images_per_second": 9.0,
        "bytes_to_answer_ms": END_TO_END,
        "accuracy": 1.0,
        "bytes": 7,
    }
    content = {
        "torch_cuda": on_gpu,
        "timm_own_inference": {"bytes_to_answer_ms": END_TO_END},
        "int8": of_a_run["int8"],
        "hardware": of_a_run["hardware"] | {"int8_dot_products": None},
    }
    metrics = same_bytes(BenchmarkMetrics, content, tmp_path)
    assert isinstance(metrics, BenchmarkMetrics)
    assert (list(metrics.backends), list(metrics.libraries)) == (["torch_cuda"], ["timm_own_inference"])
    assert metrics.backends["torch_cuda"].latency_ms_one_thread is None
    built = BenchmarkMetrics(**{name: getattr(metrics, name) for name in BenchmarkMetrics.model_fields})
    assert built.as_dict() == content  # given by names or read from a file


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"homepage": ""}, "homepage"),
        ({"files": {"images.zip": {"bytes": "many", "sha256": ""}}}, r"files\.images\.zip\.bytes"),
    ],
)
def test_another_key_or_value_is_one_line_that_names_it(tmp_path: Path, change: dict[str, object], key: str) -> None:
    write_json(tmp_path / "receipt.json", RECEIPT | change)
    with pytest.raises(UserError, match=rf"receipt\.json: {key}: .*; recreate it with: dvc repro"):
        Receipt.read(tmp_path / "receipt.json")


def test_a_missing_key_is_one_line_that_names_it(tmp_path: Path) -> None:
    write_json(tmp_path / "receipt.json", {key: value for key, value in RECEIPT.items() if key != "layout"})
    with pytest.raises(UserError, match=r"receipt\.json: layout: Field required"):
        Receipt.read(tmp_path / "receipt.json")


@pytest.mark.parametrize(("offered", "said"), [(True, "worth it: give models/model_int8.onnx"), (False, "not worth it here")])
def test_the_comparison_of_int8_is_put_in_words(offered: bool, said: str) -> None:
    text = Int8Comparison(speedup=2.5, points_lost=0.25, offered=offered).advice()
    assert text.startswith("2.50 times the throughput of fp32, 0.25 points of accuracy lost; ")
    assert said in text
