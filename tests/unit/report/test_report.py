"""The report and the model card: whole with whatever is there, escaped, without other hosts, the same bytes twice."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from fieldguide.core.images import encode_jpeg
from fieldguide.core.paths import GALLERY_JSON, MANIFEST, METRICS, RECEIPT, confusion_csv, stage_metrics
from fieldguide.report import facts as report
from fieldguide.report import page
from fieldguide.report.card import render_card
from fieldguide.report.facts import Facts, read_facts
from fieldguide.report.figures import figures_of
from fieldguide.report.text import markdown, percent, size
from support import ROOT

NASTY = '<img src=x onerror="alert(1)"> & | *B* [c](d)'
PARAMS = {
    "data": {"dataset": "folder", "path": "", "features": {"image": "image"}},
    "model": {"name": "fieldnet", "weights": "none", "image_px": 96},
    "train": {"lr": 0.15, "epochs": 3, "compile": False},
    "augment": {"hue": 0.0},
    "benchmark": {"batch_sizes": [1, 8]},
}
COVERAGES = [f"accuracy_at_coverage_{share}" for share in (80, 90, 95)]
VOID = {"meta", "img"}


class Page(HTMLParser):
    """What a page holds; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def render_page(facts: Facts) -> str:
    return page.render_page(facts, figures_of(facts))


def photograph(truth: str, predicted: str) -> dict[str, Any]:
    pixels = base64.b64encode(encode_jpeg(np.full((8, 8, 3), 90, np.uint8), 8)).decode()
    activation = pixels if truth != predicted else None
    right = truth == predicted
    answer = {"truth": truth, "predicted": predicted, "probability": 0.75, "right": right}
    return answer | {"photograph": pixels, "activation": activation}


def split_figures(accuracy: float, n: int) -> dict[str, float]:
    ends = {"accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.05, "macro_f1_low": 0.6, "macro_f1_high": 0.9}
    figures = {"accuracy": accuracy, "top5_accuracy": 1.0, "macro_f1": 0.75, "weighted_f1": 0.76, "loss": 0.5, "ece": 0.04}
    return (
        figures
        | ends
        | dict.fromkeys(COVERAGES, 0.8)
        | {"loss_uncalibrated": 0.6, "ece_uncalibrated": 0.2, "risk_coverage_area": 0.01, "n": n}
    )


def write_all(name: str) -> None:
    """What every stage writes, for two classes of which the second has `name`."""
    METRICS.mkdir()
    RECEIPT.parent.mkdir(parents=True)
    receipt = {"dataset": "folder", "title": name, "home": "", "licence": name, "source": name, "version": "", "release": ""}
    receipt |= {"layout": "folders", "features": {"image": "image", "label": "class", "id": "id"}, "images": {"train": 8}}
    receipt |= {"ignored": {}, "files": {"a": {"bytes": 10, "sha256": "00"}}}
    RECEIPT.write_text(json.dumps(receipt))
    MANIFEST.write_text("manifest")
    near = {"across_splits": 2, "within_split": 1}
    check = {
        "classes": 2,
        "images": {"train": 8, "valid": 4, "test": 4},
        "unlabelled": 0,
        "unreadable": 1,
        "exact_duplicates": 0,
    }
    check |= {
        "near_duplicates": near,
        "label_conflicts": 0,
        "missing_classes": {"train": 0, "valid": 0, "test": 0},
        "dropped": 3,
    }
    check["train_images_per_class"] = {"smallest": 3, "largest": 5}
    train = {"epochs": 3, "best_epoch": 2, "train": {"loss": 1.0, "accuracy": 0.5}, "valid": {"loss": 1.1, "accuracy": 0.5}}
    evaluate = {split: split_figures(0.75, 4) for split in ("train", "valid", "test")}
    evaluate |= {"test_without_leaks": {"accuracy": None, "n": 0}, "calibration": {"temperature": 0.5, "unsure_below": 0.9}}
    evaluate["calibration"]["unknown_below"] = 0.3
    evaluate |= {"tta": {"forward_passes": 1}, "strangers": {"white_noise": {"refused": 0.9, "auroc": 0.95, "n": 100}}}
    times = {"p50": 1.5, "p95": 2.5, "p99": 3.5}
    backend = {"latency_ms": times | {"p50_rounds": [1.4, 1.6]}, "images_per_second": 321.0, "bytes_to_answer_ms": times}
    backend |= {"accuracy": 0.75, "bytes": 4_000_000}
    hardware = {"device": "cpu, 2 threads", "cpu": "a processor", "cores": 2, "threads": 2, "int8_dot_products": True}
    hardware |= {"system": "Linux", "python": "3.11", "torch": "2", "onnxruntime": "1"}
    int8 = {"speedup": 2.5, "points_lost": 0.25, "offered": True}
    form = {"accuracy": 0.75, "bytes": 1_000_000}
    export = {"top1_agreement": 1.0, "max_abs_difference": 4e-7, "ties": 0, "accuracy": 0.75, "n": 4, "bytes": 4_000_000}
    export |= {"opset": 20, "fp16": form, "int8": form | {"method": "entropy", "valid_accuracy": {"entropy": 0.75}}}
    contents = {
        "split_check": check,
        "train": train | {"parameters": 1234},
        "evaluate": evaluate,
        "export_onnx": export,
        "benchmark": {"onnxruntime": backend, "int8": int8, "hardware": hardware},
    }
    for stage, content in contents.items():
        stage_metrics(stage).write_text(json.dumps(content))
    names = ["A", name]
    splits = {"train": [3, 5], "valid": [2, 2], "test": [2, 2]}
    pd.DataFrame({"label": [0, 1], "class_name": names} | splits).to_csv(report.CLASSES_CSV, index=False)
    pd.DataFrame({"kind": ["leak"], "action": [name]}).to_csv(report.FINDINGS_CSV, index=False)
    history = {"epoch": [1, 2, 3], "lr": [0.1, 0.2, 0.0]}
    history |= {f"{split}_{key}": [0.3, 0.5, 0.4] for split in ("train", "valid") for key in ("loss", "accuracy")}
    pd.DataFrame(history).to_csv(report.HISTORY_CSV, index=False)
    per_class = {
        "split": "test",
        "class_name": names,
        "precision": [1, 0.5],
        "recall": [0.5, 1],
        "f1": [0.9, 0.6],
        "support": 2,
    }
    pd.DataFrame(per_class).to_csv(report.PER_CLASS_CSV, index=False)
    bins = {"split": ["valid", "test"], "low": 0.5, "high": 1.0, "n": 4, "confidence": 0.8, "accuracy": 0.75}
    pd.DataFrame(bins | {"accuracy_low": 0.5, "accuracy_high": 0.9}).to_csv(report.RELIABILITY_CSV, index=False)
    coverage = {"coverage": np.arange(1, 101) / 100}
    coverage |= {f"{split}{key}": value for split in ("valid", "test") for key, value in (("", 0.75), ("_probability", 0.6))}
    pd.DataFrame(coverage).to_csv(report.COVERAGE_CSV, index=False)
    pair = {"split": ["test"], "truth": ["A"], "predicted": [name], "n": [1], "n_truth": [2], "share": [0.5]}
    pd.DataFrame(pair).to_csv(report.CONFUSED_PAIRS_CSV, index=False)
    throughput = {
        "backend": "onnxruntime",
        "batch_size": [1, 8],
        "images_per_second": [300, 321],
        "slowest": 250,
        "fastest": 400,
    }
    pd.DataFrame(throughput).to_csv(report.THROUGHPUT_CSV, index=False)
    for split in ("train", "valid", "test"):
        table = pd.DataFrame({"truth": ["A", "A", name, name], "predicted": ["A", name, name, name]})
        table.to_csv(confusion_csv(split), index=False)
    both = {"truth": "A", "predicted": name, "n": 1, "n_truth": 4}
    examples = {"mistaken": [photograph("A", name)], "of_truth": [photograph("A", "A")], "of_predicted": []}
    wrong, right = [photograph("A", name)], [photograph(name, name)]
    GALLERY_JSON.write_text(json.dumps({"split": "test", "wrong": wrong, "right": right, "pairs": [both | examples]}))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def html(folder: Path) -> str:
    write_all("Papilio machaon")
    return render_page(read_facts(PARAMS))


def test_the_page_states_the_figures_that_the_stages_wrote(html: str) -> None:
    text = Page(html).text.replace("\u00a0", " ")
    for words in (
        "16 images of 2 classes; 3 of them are left out of use.",
        "3 of 4 images of test are named right: 75.0 %, 95 % interval 65.0 to 80.0 %.",
        "1,234 parameters, 3 epochs.",
        "near duplicates across splits 2",
        "Papilio machaon",
        "temperature 0.500, fitted on valid, which takes the calibration error of test from 0.200 to 0.040",
        "onnxruntime 1.50 2.50 3.50 321 75.00 % 4.0 MB",
        "risk_coverage_area 0.01",
        "A mistaken for Papilio machaon: 1 of 4",
        "INT8: 2.50 times the throughput of fp32, 0.25 points of accuracy lost; worth it",
        "NO → A",
        "lr 0.15",
    ):
        assert words in text, words


def test_the_page_asks_no_other_host_for_anything(html: str) -> None:
    found = Page(html)
    sources = [value for _, attributes in found.tags for name, value in attributes.items() if name in ("src", "srcset", "data")]
    assert len(sources) == 5
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    assert [link["href"] for link in found.all("a") if not link["href"].startswith("#")] == [
        "near_duplicates.html",
        "model_card.md",
    ]
    assert not re.search(r"@import|url\((?!#)|@font-face", html)
    policies = [meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_page_can_be_used_without_seeing_it(html: str) -> None:
    found = Page(html)
    assert found.all("html")[0]["lang"] == "en"
    assert all(image.get("alt") for image in found.all("img"))
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in found.all("svg"))
    assert len(found.all("table")) == len(found.all("caption"))
    assert all(head.get("scope") in ("row", "col") for head in found.all("th"))
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    targets = {attributes["id"] for _, attributes in found.tags if "id" in attributes}
    assert {link["href"][1:] for link in found.all("a") if link["href"].startswith("#")} <= targets
    assert all(region.get("aria-label") for _, region in found.tags if region.get("role") == "region")


def test_names_of_any_kind_are_text(folder: Path) -> None:
    write_all(NASTY)
    facts = read_facts(PARAMS | {"model": PARAMS["model"] | {"weights": NASTY}})
    html = render_page(facts)
    assert "<img src=x" not in html.lower()
    assert all(image["src"].startswith("data:") for image in Page(html).all("img"))
    card = render_card(facts)
    body = card.split("---\n", 2)[2]
    assert not re.search(r"(?<!\\)<img", body, re.IGNORECASE)
    assert not re.search(r"(?<!\\)\*B\*|(?<!\\)\[c\]", body, re.IGNORECASE)
    assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"][0]["dataset"]["name"] == NASTY


def test_the_same_files_give_the_same_bytes(folder: Path) -> None:
    write_all("Papilio machaon")
    first, second = read_facts(PARAMS), read_facts(PARAMS)
    assert render_page(first) == render_page(second)
    assert render_card(first) == render_card(second)


FILES = [
    *(stage_metrics(stage) for stage in report.STAGES),
    *report.TABLES.values(),
    GALLERY_JSON,
    RECEIPT,
    MANIFEST,
    *(confusion_csv(split) for split in ("train", "valid", "test")),
]


@pytest.mark.parametrize("missing", FILES, ids=str)
def test_any_missing_file_leaves_a_whole_page_and_card(folder: Path, missing: Path) -> None:
    write_all("Papilio machaon")
    missing.unlink()
    facts = read_facts(PARAMS)
    assert Page(render_page(facts)).all("h1")
    assert render_card(facts).startswith("---\n")


def test_a_run_without_anything_says_what_is_not_there(folder: Path) -> None:
    facts = read_facts(PARAMS)
    text = Page(render_page(facts)).text
    for stage in ("split_check", "train", "evaluate", "export_onnx", "benchmark"):
        assert f"dvc repro {stage}" in text
    assert "The network has not been evaluated." in render_card(facts)


def test_without_labelled_test_images_valid_takes_their_place(folder: Path) -> None:
    write_all("Papilio machaon")
    content = json.loads(stage_metrics("evaluate").read_text())
    del content["test"], content["test_without_leaks"]
    stage_metrics("evaluate").write_text(json.dumps(content))
    confusion_csv("test").write_text("truth,predicted\n")
    facts = read_facts(PARAMS)
    text = Page(render_page(facts)).text
    assert "There are no labelled test images" in text
    assert "valid accuracy" in text
    assert "There is no figure on labelled test images." in render_card(facts)


def test_a_class_called_na_keeps_its_name(folder: Path) -> None:
    write_all("NA")
    facts = read_facts(PARAMS)
    assert facts.tables["classes"]["class_name"].tolist() == ["A", "NA"]
    assert '<th scope="row">A</th><td class="text">Na</td>' in render_page(facts)


def test_the_card_has_the_sections_and_the_metadata_of_the_convention(folder: Path) -> None:
    write_all("Papilio machaon")
    card = render_card(read_facts(PARAMS))
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["pipeline_tag"] == "image-classification"
    (result,) = metadata["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"accuracy": 0.75, "f1": 0.75}
    sections = re.findall(r"^## (.+)$", body, re.MULTILINE)
    assert sections == [
        "Model Details",
        "Uses",
        "Bias, Risks, and Limitations",
        "How to Get Started with the Model",
        "Training Details",
        "Evaluation",
        "Technical Specifications",
    ]
    tables = re.findall(r"(?:^\|.+\|\n)+", body, re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_hashes_are_those_of_the_files_and_dvcs_only_where_it_agrees(folder: Path) -> None:
    write_all("Papilio machaon")
    digests = {name: hashlib.new(name, b"manifest", usedforsecurity=False).hexdigest() for name in ("md5", "sha256")}
    for md5, shown in ((digests["md5"], digests["md5"]), (64 * "0", None)):
        outs = [{"path": "data/raw", "md5": "abc.dir", "size": 10}, {"path": "data/manifest.csv", "md5": md5}]
        Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"split_check": {"outs": outs}}}))
        raw, manifest = read_facts(PARAMS).hashes
        assert raw == {"path": "data/raw", "bytes": 10, "sha256": None, "md5": "abc.dir"}
        assert manifest == {"path": "data/manifest.csv", "bytes": 8, "sha256": digests["sha256"], "md5": shown}


def test_throughput_has_a_row_for_each_backend_and_number_of_threads(folder: Path) -> None:
    write_all("Papilio machaon")
    table = pd.read_csv(report.THROUGHPUT_CSV)
    both = pd.concat([table.assign(threads=1), table.head(1).assign(threads=2)])
    both.to_csv(report.THROUGHPUT_CSV, index=False)
    text = Page(render_page(read_facts(PARAMS))).text
    assert "onnxruntime, 1 thread 300 250 to 400 321 250 to 400" in text
    assert "onnxruntime, 2 threads 300 250 to 400 – Measured on" in text


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (13_731_208, "13.7 MB"), (None, "–")]
)
def test_sizes_are_in_a_fitting_unit(value: int | None, expected: str) -> None:
    assert size(value) == expected


def test_a_share_that_is_not_there_is_a_dash() -> None:
    assert [percent(value) for value in (0.5, None, float("nan"))] == ["50.0\u00a0%", "–", "–"]


def test_markdown_signs_lose_their_meaning() -> None:
    assert markdown("a|b\n<i>*c*</i>") == "a\\|b \\<i\\>\\*c\\*\\</i\\>"


def test_every_param_section_of_the_project_can_be_shown(folder: Path) -> None:
    write_all("Papilio machaon")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    text = Page(render_page(read_facts(params))).text
    for section in ("data", "split_check", "model", "train", "augment", "evaluate", "export", "benchmark"):
        assert f"{section} " in text
    assert "sample.species 12" in text
