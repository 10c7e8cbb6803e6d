"""The report of many classes in a browser: short, complete without JavaScript, searchable with it."""

from contextlib import chdir
from pathlib import Path

import pytest
from playwright.sync_api import Page

from fieldguide.core.paths import REPORT_HTML
from fieldguide.report.facts import read_facts
from fieldguide.report.outputs import write_report
from support.browser import MARKS, chromium
from support.reports import PARAMS, species_names, write_large_run

pytestmark = [*MARKS, pytest.mark.slow]
N_CLASSES = 1000
MAX_HEIGHT = 10_000  # pixels of the page as it opens


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    with chdir(folder):
        write_large_run(species_names(N_CLASSES))
        write_report(read_facts(PARAMS))
    return folder / REPORT_HTML


def open_table(page: Page, report: Path) -> None:
    page.goto(report.as_uri())
    page.get_by_text(f"All {N_CLASSES:,} classes", exact=True).click()


def shown_rows(page: Page) -> int:
    return page.locator("#classes tbody tr:visible").count()


def test_the_report_is_short_and_its_search_finds_classes(report: Path) -> None:
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.goto(report.as_uri())
        assert page.evaluate("document.documentElement.scrollHeight") < MAX_HEIGHT
        open_table(page, report)
        assert shown_rows(page) == N_CLASSES
        name = species_names(N_CLASSES)[321]
        page.get_by_label("Show the classes whose name contains").fill(name.upper()[2:] + " " + name[:3])
        assert shown_rows(page) == 1
        assert page.locator("output").inner_text() == f"1 of {N_CLASSES:,}"
        page.get_by_label("Show the classes whose name contains").fill("")
        assert shown_rows(page) == N_CLASSES
        assert errors == []


def test_without_javascript_the_table_is_complete_and_nothing_else_stands_there(report: Path) -> None:
    with chromium() as browser:
        page = browser.new_context(java_script_enabled=False).new_page()
        open_table(page, report)
        assert shown_rows(page) == N_CLASSES
        assert page.locator("#class-search:visible").count() == 0
