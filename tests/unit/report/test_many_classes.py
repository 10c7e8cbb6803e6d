"""The charts, the page and the card of many classes: complete, bounded, and nothing unmeasured drawn as 0."""

import base64
import hashlib
import re
from contextlib import chdir
from pathlib import Path

import pandas as pd
import pytest

from fieldguide.core.names import MAX_BLOCKS
from fieldguide.core.paths import CLASSES_PNG, CONFUSED_PAIRS_CSV, PER_CLASS_CSV, PER_CLASS_PNG, confusion_csv, confusion_png
from fieldguide.report.card import render_card
from fieldguide.report.data_figures import data_figures
from fieldguide.report.facts import read_facts
from fieldguide.report.figures import figures_of, svg
from fieldguide.report.page import MAX_PAIRS, render_page
from support.reports import PARAMS, species_names, write_large_run

N_CLASSES = 1500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    with chdir(folder):
        write_large_run(species_names(N_CLASSES))
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    with chdir(folder):
        facts = read_facts(PARAMS)
        return render_page(facts, data_figures() | figures_of(facts))


def rows_of(html: str) -> list[list[str]]:
    """The cells of the table of all classes."""
    body = html.split('<table id="classes">')[1].split("<tbody>")[1].split("</tbody>")[0]
    return [re.split(r"<td>|<th scope=row>", row.strip())[1:] for row in body.split("<tr>")[1:]]


def test_the_table_has_every_class_the_worst_first_and_the_unmeasured_last(html: str) -> None:
    rows = rows_of(html)
    scores = pd.read_csv(PER_CLASS_CSV).query("split == 'test'")
    assert sorted(row[0] for row in rows) == sorted(scores["class_name"])
    measured = [float(row[4]) for row in rows if row[4] != "–"]
    assert measured == sorted(measured)
    assert len(measured) == scores["f1"].notna().sum() < N_CLASSES
    assert [row[4:] for row in rows[len(measured) :]] == [["–"] * 3] * (N_CLASSES - len(measured))
    assert all(row[3] == "0" for row in rows[len(measured) :])  # images in test


def test_figures_say_over_how_many_classes_they_are(html: str) -> None:
    scores = pd.read_csv(PER_CLASS_CSV).query("split == 'test'")
    n_measured = scores["f1"].notna().sum()
    over = f"over {n_measured:,} of {N_CLASSES:,} classes"
    assert over in html
    assert f"{N_CLASSES - n_measured:,} classes have no images in test. They are not measured." in html
    facts = read_facts(PARAMS)
    assert f"Macro F1 and the metrics per class on test are {over}" in render_card(facts)
    title = figures_of(facts)[PER_CLASS_PNG].get_suptitle()
    assert title.endswith(f"of {n_measured} classes below 0.9; {N_CLASSES - n_measured} not measured")


def test_the_page_runs_its_own_script_and_no_other(html: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in html
    assert '<p hidden><label for="class-search">' in html  # which the script shows


def test_page_and_card_are_bounded(html: str) -> None:
    assert len(html) < 3_000_000
    assert max(len(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)) < 300_000
    pairs = pd.read_csv(CONFUSED_PAIRS_CSV).query("split == 'test'")
    shown = min(len(pairs), MAX_PAIRS)
    assert html.split("All confused pairs")[1].split("</table>")[0].count("<tr>") == shown + 1
    assert len(render_card(read_facts(PARAMS))) < 20_000


def test_a_confusion_has_blocks_with_every_image() -> None:
    facts = read_facts(PARAMS)
    figures = figures_of(facts)
    for split, metrics in facts.evaluate.splits.items():
        table = pd.read_csv(confusion_csv(split))
        assert table["n"].sum() == metrics.n
        axis = figures[confusion_png(split)].axes[0]
        assert axis.images[0].get_array().shape == (MAX_BLOCKS, MAX_BLOCKS)
        right = round(metrics.accuracy * metrics.n)
        assert axis.get_title().startswith(f"{split}: {right} of {metrics.n} right")
        assert f"the {MAX_BLOCKS - 1} most confused of {N_CLASSES // 5} groups" in axis.get_title()
        assert axis.get_ylabel() == "true group"
        shares = axis.images[0].get_array().sum(axis=1)
        assert set(shares.round(6).tolist()) <= {0.0, 1.0}


def test_the_charts_of_the_data_do_not_grow(html: str) -> None:
    figures = data_figures()
    assert len(svg(figures[CLASSES_PNG], "sizes")) < 60_000
    assert "too many classes for a colour each" in html
