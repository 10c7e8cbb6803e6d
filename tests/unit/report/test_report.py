"""The report and the model card: what the stages wrote, escaped, without other hosts, the same bytes twice."""

import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import yaml

from fieldguide.core.errors import UserError
from fieldguide.core.paths import CONFUSED_TAXA_CSV, RAW, TAXONOMY, confusion_csv, stage_metrics
from fieldguide.report import facts as report
from fieldguide.report import page
from fieldguide.report.card import render_card
from fieldguide.report.facts import Facts, read_facts
from fieldguide.report.figures import figures_of
from fieldguide.report.text import markdown, percent, size
from support import ROOT
from support.reports import PARAMS, write_run

NASTY = '<img src=x onerror="alert(1)"> & | *B* [c](d)'
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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def html(folder: Path) -> str:
    write_run("Papilio machaon")
    return render_page(read_facts(PARAMS))


def test_the_page_states_the_figures_that_the_stages_wrote(html: str) -> None:
    text = Page(html).text.replace("\u00a0", " ")
    for words in (
        "16 images of 2 classes; 3 of them are excluded.",
        "3 of 4 images of test are classified correctly: 75.0 %, 95 % interval 65.0 to 80.0 %.",
        "1,234 parameters, trained for 3 epochs.",
        "near duplicates across splits 2",
        "Papilio machaon",
        "temperature of 0.500, fitted on valid. This changes the calibration error on test from 0.200 to 0.040",
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
    assert len(sources) == 8
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    assert [link["href"] for link in found.all("a") if not link["href"].startswith("#")] == [
        "near_duplicates.html",
        "label_errors.html",
        "../data/corrections.csv",
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
    write_run(NASTY)
    facts = read_facts(PARAMS | {"model": PARAMS["model"] | {"weights": NASTY}})
    html = render_page(facts)
    assert "<img src=x" not in html.lower()
    assert all(image["src"].startswith("data:") for image in Page(html).all("img"))
    card = render_card(facts)
    body = card.split("---\n", 2)[2]
    assert not re.search(r"(?<!\\)<img", body, re.IGNORECASE)
    assert not re.search(r"(?<!\\)\*B\*|(?<!\\)\[c\]", body, re.IGNORECASE)
    assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"][0]["dataset"]["name"] == NASTY


@pytest.mark.slow
def test_the_same_files_give_the_same_bytes(folder: Path) -> None:
    write_run("Papilio machaon")
    first, second = read_facts(PARAMS), read_facts(PARAMS)
    assert render_page(first) == render_page(second)
    assert render_card(first) == render_card(second)


@pytest.mark.parametrize("missing", [path for path in report.INPUTS if path != RAW], ids=str)
def test_a_missing_file_is_named_with_its_remedy(folder: Path, missing: Path) -> None:
    write_run("Papilio machaon")
    missing.unlink()
    with pytest.raises(UserError, match=f"{re.escape(str(missing))}: No such file or directory; create it with: dvc repro"):
        read_facts(PARAMS)


def test_without_labelled_test_images_valid_takes_their_place(folder: Path) -> None:
    write_run("Papilio machaon")
    content = json.loads(stage_metrics("evaluate").read_text())
    del content["test"], content["test_without_leaks"]
    stage_metrics("evaluate").write_text(json.dumps(content))
    confusion_csv("test").write_text("truth,predicted\n")
    facts = read_facts(PARAMS)
    text = Page(render_page(facts)).text
    assert "There are no labelled test images" in text
    assert "valid accuracy" in text
    assert "There are no metrics on labelled test images." in render_card(facts)


@pytest.mark.slow
def test_figures_by_corrected_labels_stand_beside_those_by_the_labels_of_the_data(folder: Path) -> None:
    write_run("Papilio machaon")
    assert "corrected" not in render_card(read_facts(PARAMS))
    content = json.loads(stage_metrics("evaluate").read_text())
    corrected = {"accuracy": 0.875, "accuracy_low": 0.5, "accuracy_high": 0.975, "macro_f1": 0.8125, "weighted_f1": 0.8, "n": 3}
    content["test"]["as_corrected"] = corrected
    stage_metrics("evaluate").write_text(json.dumps(content))
    check = json.loads(stage_metrics("split_check").read_text())
    check["corrections"] = {"keep": 0, "relabel": 2, "drop": 0, "unmatched": 1}
    stage_metrics("split_check").write_text(json.dumps(check))
    facts = read_facts(PARAMS)
    said = (
        "These are the labels of the data. By the corrected labels the accuracy is 87.5\u00a0%, 95\u00a0% interval 50.0 to 97.5"
    )
    assert said in page.result_text(facts)
    card = render_card(facts)
    assert said.replace("\u00a0", " ") in card
    assert "| test as corrected | 3 | 87.5 % (50.0 to 97.5) |" in card.replace("\u00a0", " ")
    assert "- decisions about images: relabel: 2\n- decisions about images: unmatched: 1\n" in card
    assert not any(name.startswith("as_corrected") for _, rows in page.results_section(facts)["further"] for name, _ in rows)


def test_a_class_called_na_keeps_its_name(folder: Path) -> None:
    write_run("NA")
    facts = read_facts(PARAMS)
    assert facts.tables["classes"]["class_name"].tolist() == ["A", "NA"]
    assert '<th scope="row">A</th><td class="text">Na</td>' in render_page(facts)


def test_the_card_has_the_sections_and_the_metadata_of_the_convention(folder: Path) -> None:
    write_run("Papilio machaon")
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


def test_hashes_are_those_of_the_files_and_the_folders_is_dvcs(folder: Path) -> None:
    write_run("Papilio machaon")
    digests = {name: hashlib.new(name, b"manifest", usedforsecurity=False).hexdigest() for name in ("md5", "sha256")}
    manifest = {"path": "data/manifest.csv", "bytes": 8, **digests}
    unknown = {"path": "data/raw", "bytes": None, "sha256": None, "md5": None}
    assert read_facts(PARAMS).hashes[:2] == [unknown, manifest]
    outs = [{"path": "data/raw", "md5": "abc.dir", "size": 10}]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"download": {"outs": outs}}}))
    assert read_facts(PARAMS).hashes[:2] == [unknown | {"bytes": 10, "md5": "abc.dir"}, manifest]


@pytest.mark.slow
def test_throughput_has_a_row_for_each_backend_and_number_of_threads(folder: Path) -> None:
    write_run("Papilio machaon")
    table = pd.read_csv(report.THROUGHPUT_CSV)
    both = pd.concat([table, table, table.assign(threads=2)])  # on one core, the first two are of all threads and of one
    both.to_csv(report.THROUGHPUT_CSV, index=False)
    text = Page(render_page(read_facts(PARAMS))).text
    assert "onnxruntime, 1 thread 300 250 to 400 321 250 to 400 onnxruntime, 2 threads 300" in text


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0 Bytes"), (999, "999 Bytes"), (1000, "1.0 kB"), (13_731_208, "13.7 MB"), (None, "–")]
)
def test_sizes_are_in_a_fitting_unit(value: int | None, expected: str) -> None:
    assert size(value) == expected


def test_a_share_that_is_not_there_is_a_dash() -> None:
    assert [percent(value) for value in (0.5, None, float("nan"))] == ["50.0\u00a0%", "–", "–"]


def test_markdown_signs_lose_their_meaning() -> None:
    assert markdown("a|b\n<i>*c*</i>") == "a\\|b \\<i\\>\\*c\\*\\</i\\>"


@pytest.mark.slow
def test_every_param_section_of_the_project_can_be_shown(folder: Path) -> None:
    write_run("Papilio machaon")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    text = Page(render_page(read_facts(params))).text
    for section in ("data", "split_check", "model", "train", "augment", "evaluate", "export", "benchmark"):
        assert f"{section} " in text
    assert "sample.species 12" in text


def test_accuracy_by_class_size_is_told_where_classes_differ_in_size(folder: Path) -> None:
    write_run("Papilio machaon")
    path = stage_metrics("evaluate")
    metrics = json.loads(path.read_text())
    band = {"accuracy": 0.5, "accuracy_low": 0.1, "accuracy_high": 0.9, "n": 2, "classes": 1}
    for bands in ({}, {"1-5": band}):
        metrics["test"]["by_class_size"] = bands
        path.write_text(json.dumps(metrics))
        facts = read_facts(PARAMS)
        assert "by the number of a class" not in page.render_page(facts, figures_of(facts)) + render_card(facts)
    metrics["test"]["by_class_size"] = {"1-5": band, "21-100": band | {"accuracy": 1.0}}
    path.write_text(json.dumps(metrics))
    facts = read_facts(PARAMS)
    assert '<tr><th scope="row">21-100</th><td>100.0 %</td>' in page.render_page(facts, figures_of(facts)).replace(
        "\u00a0", " "
    )
    line = "Accuracy on test by the number of a class's training images: 1-5: 50.0 % (n = 2), 21-100: 100.0 % (n = 2)"
    assert line in render_card(facts).replace("\u00a0", " ")


def test_taxa_are_told_with_their_accuracy_and_species_by_both_names(folder: Path) -> None:
    write_run("Papilio machaon")
    facts = read_facts(PARAMS)
    assert "By genus, family and order" not in page.render_page(facts, figures_of(facts))
    TAXONOMY.parent.mkdir(exist_ok=True)
    TAXONOMY.write_text("class_name,common_name,scientific_name\nPapilio machaon,Swallowtail <b>,Papilio machaon\n")
    path = stage_metrics("evaluate")
    metrics = json.loads(path.read_text())
    rank = {"accuracy": 0.96, "accuracy_low": 0.9, "accuracy_high": 0.99, "groups": 2, "told": 0.08, "accuracy_when_told": None}
    metrics["test"] |= {"by_rank": {"genus": rank}, "useful": 0.85}
    path.write_text(json.dumps(metrics))
    CONFUSED_TAXA_CSV.write_text("split,rank,truth,predicted,n,n_truth\ntest,genus,A,Papilio,3,7\n")
    facts = read_facts(PARAMS)
    text = page.render_page(facts, figures_of(facts)).replace("\u00a0", " ")
    assert '<tr><th scope="row">genus</th><td>96.0 %</td>' in text
    assert "Right and told are 85.0 % of test" in text
    assert '<td class="text">Papilio</td><td>3</td><td>7</td>' in text
    assert "Swallowtail &lt;b&gt; <i>Papilio machaon</i>" in text


def test_the_card_says_first_what_a_reader_must_know(folder: Path) -> None:
    write_run("Papilio machaon")
    card = render_card(read_facts(PARAMS)).replace("\u00a0", " ")
    assert card.index("names one of its 2 classes. ") < card.index("## Model Details")
    path = stage_metrics("evaluate")
    metrics = json.loads(path.read_text())
    metrics["test"] |= {"sure": 0.0, "accuracy_when_sure": None}
    path.write_text(json.dumps(metrics))
    assert "It is sure of no photograph of test." in render_card(read_facts(PARAMS))


def test_a_fold_links_the_table_of_all_folds(folder: Path) -> None:
    write_run("Papilio machaon")
    facts = read_facts(PARAMS)
    assert "folds.csv" not in page.render_page(facts, figures_of(facts))
    facts = read_facts(PARAMS | {"split_check": {"folds": 5}})
    assert 'This is one fold of 5: <code>fieldguide folds</code> joins them in <a href="folds.csv">' in page.render_page(
        facts, figures_of(facts)
    )
