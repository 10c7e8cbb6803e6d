"""The review in headless Chromium: keys alone, plain forms, two windows, a server that is gone, and accessibility (axe)."""

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from fieldguide.core.corrections import read_corrections
from support.app_server import png, wait_until, write_model
from support.browser import MARKS, RULES, chromium
from support.reviews import CONFLICT, NAMES, SUSPECTS, Reviewing, reviewing, write_reviewed

pytestmark = MARKS
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
ORDER = [*CONFLICT, *SUSPECTS]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture
def project(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> Path:
    write_reviewed(tmp_path, make_jpeg)
    return tmp_path


@pytest.fixture
def running(project: Path) -> Iterator[Reviewing]:
    with reviewing(project, "--by", "Ann") as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """`open_page(running, **context)`: the page; at the end no script failed, and nothing was against the policy."""
    contexts, errors = [], []

    def opened(running: Reviewing, path: str = "/", **settings: object) -> Page:
        context = browser.new_context(**DESKTOP | settings)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if "Security Policy" in message.text else None)
        page.goto(f"http://127.0.0.1:{running.port}{path}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []


def name_of(page: Page):
    """The caption of the photograph that is asked about."""
    return page.locator(".subject figcaption").first


def decided(project: Path) -> dict[str, tuple[str, str]]:
    corrections = read_corrections(project / "data" / "corrections.csv").values()
    return {one.file: (one.decision, one.label) for one in corrections}


def violations(page: Page) -> list[str]:
    return [f"{found['id']}: {found['nodes'][0]['html']}" for found in Axe().run(page, options=RULES).response["violations"]]


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_keys_decide_skip_and_undo(open_page: Callable[..., Page], running: Reviewing, project: Path) -> None:
    page = open_page(running)
    expect(name_of(page)).to_have_text(ORDER[0])
    for key, following in (("k", ORDER[1]), ("s", ORDER[2]), ("r", ORDER[3]), ("d", ORDER[4])):
        page.keyboard.press(key)
        expect(name_of(page)).to_have_text(following)
    expected = {ORDER[0]: ("keep", ""), ORDER[2]: ("relabel", NAMES[1]), ORDER[3]: ("drop", "")}
    assert decided(project) == expected
    expect(page.get_by_role("status")).to_contain_text(f"Stored: drop, {ORDER[3]}. 3 of 7 decided.")
    page.keyboard.press("u")
    expect(name_of(page)).to_have_text(ORDER[3])
    expect(page.get_by_role("status")).to_contain_text(f"Withdrawn: {ORDER[3]}. 2 of 7 decided.")
    del expected[ORDER[3]]
    assert decided(project) == expected
    page.keyboard.press("ArrowLeft")
    expect(name_of(page)).to_have_text(ORDER[2])
    expect(page.locator(".decided")).to_contain_text("relabel as Monarch, by Ann")
    page.go_back()
    expect(name_of(page)).to_have_text(ORDER[3])
    page.reload()
    expect(name_of(page)).to_have_text(ORDER[3])


def test_the_focus_stays_and_typing_is_no_key(open_page: Callable[..., Page], running: Reviewing, project: Path) -> None:
    page = open_page(running, "/?kind=atypical")
    page.keyboard.press("r")  # nothing is suggested: to the list of all classes
    find = page.get_by_label("Another class")
    expect(find).to_be_focused()
    page.keyboard.type("dusk")
    expect(find).to_have_value("dusk")
    page.keyboard.press("Enter")
    expect(page.locator(".item .notice")).to_have_text("There is no class 'dusk'; choose one of the list.")
    assert decided(project) == {}
    page.keyboard.press("/")
    page.keyboard.type("monarch")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=2)).to_have_text("All decided")
    assert decided(project) == {"train/1/1.jpg": ("relabel", "MONARCH")}
    page = open_page(running, "/?kind=label")
    keep = page.locator('[data-key="k"]')
    keep.focus()
    page.keyboard.press("Enter")
    expect(name_of(page)).to_have_text("valid/1/0.jpg")
    expect(keep).to_be_focused()
    page.get_by_role("switch", name="Keyboard shortcuts").uncheck()
    page.keyboard.press("d")
    page.reload()
    expect(page.get_by_role("switch", name="Keyboard shortcuts")).not_to_be_checked()
    assert "valid/1/0.jpg" not in decided(project)


def test_it_works_without_a_script(open_page: Callable[..., Page], running: Reviewing, project: Path) -> None:
    page = open_page(running, java_script_enabled=False)
    page.get_by_role("button", name="Keep").click()
    expect(name_of(page)).to_have_text(ORDER[1])
    page.get_by_role("link", name="Skip", exact=True).click()
    expect(name_of(page)).to_have_text(ORDER[2])
    page.get_by_label("Another class").fill(NAMES[2])
    page.get_by_role("button", name="Relabel", exact=True).click()
    expect(name_of(page)).to_have_text(ORDER[3])
    page.get_by_role("button", name="Undo").click()
    expect(name_of(page)).to_have_text(ORDER[2])
    page.get_by_role("combobox", name="Kind").select_option("duplicate")
    page.get_by_role("button", name="Filter").click()
    expect(name_of(page)).to_have_text("train/2/2.jpg")
    assert "kind=duplicate" in page.url
    assert decided(project) == {ORDER[0]: ("keep", "")}


@pytest.mark.slow
def test_two_windows_see_each_other(open_page: Callable[..., Page], running: Reviewing, project: Path) -> None:
    with reviewing(project, "--by", "Bo") as second:
        page, other = open_page(running), open_page(second)
        page.keyboard.press("k")
        expect(name_of(page)).to_have_text(ORDER[1])
        other.keyboard.press("d")
        expect(other.locator(".item .notice")).to_contain_text("decided elsewhere meanwhile: keep by Ann")
        expect(other.get_by_role("status")).to_contain_text("decided elsewhere meanwhile")
        expect(name_of(other)).to_have_text(ORDER[0])
        assert decided(project) == {ORDER[0]: ("keep", "")}
        other.keyboard.press("d")
        expect(name_of(other)).to_have_text(ORDER[1])
        assert decided(project) == {ORDER[0]: ("drop", "")}


@pytest.mark.slow
def test_a_server_that_is_gone_is_told_and_one_that_is_back_asks_for_a_reload(
    open_page: Callable[..., Page], running: Reviewing, project: Path
) -> None:
    page = open_page(running)
    port = str(running.port)
    running.process.send_signal(signal.SIGKILL)
    running.process.wait()
    page.keyboard.press("k")
    expect(page.get_by_role("alert")).to_contain_text("Nothing was stored: fieldguide review does not answer")
    assert decided(project) == {}
    with reviewing(project, "--port", port, "--by", "Ann"):
        page.keyboard.press("k")
        expect(page.get_by_role("alert")).to_contain_text("Reload it and decide again")
        page.reload()
        page.keyboard.press("k")
        expect(name_of(page)).to_have_text(ORDER[1])
    assert decided(project) == {ORDER[0]: ("keep", "")}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_all_can_use_it(open_page: Callable[..., Page], running: Reviewing, device: dict, scheme: str) -> None:
    page = open_page(running, color_scheme=scheme, reduced_motion="reduce", **device)
    for key, following in (("k", ORDER[1]), ("s", ORDER[2]), ("arrowleft", ORDER[1])):
        assert violations(page) == [] and fits(page)
        page.locator(f'[data-key="{key}"]').click()
        expect(name_of(page)).to_have_text(following)
    page.get_by_label("Another class").fill("x" * 400)
    page.get_by_role("button", name="Relabel", exact=True).click()
    expect(page.locator(".item .notice")).to_be_visible()
    assert violations(page) == [] and fits(page)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part < 60)")
    assert dark == (scheme == "dark")
    page.goto(f"http://127.0.0.1:{running.port}/?kind=label&class={quote(NAMES[2])}")
    expect(page.locator('[data-key="r"]')).to_contain_text("Xxxx")
    assert violations(page) == [] and fits(page)
    page.goto(f"http://127.0.0.1:{running.port}/?kind=unsure")
    assert violations(page) == [] and fits(page)
    page.goto(f"http://127.0.0.1:{running.port}/nothing")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not Found")
    assert violations(page) == []


@pytest.mark.slow
def test_number_keys_name_a_new_photograph(open_page: Callable[..., Page], tmp_path: Path) -> None:
    photographs = tmp_path / "walk"
    photographs.mkdir()
    for name, grey in (("one" * 60, 128), ("two", 120)):
        (photographs / f"{name}.png").write_bytes(png((grey, grey, grey)))
    (tmp_path / "elsewhere").mkdir()
    options = [str(photographs), "--model", str(write_model(tmp_path)), "--into", str(tmp_path / "added")]
    with reviewing(tmp_path / "elsewhere", *options) as running:
        page = open_page(running, **PHONE)
        assert violations(page) == [] and fits(page)
        second = page.locator('[data-key="2"]').inner_text()
        page.keyboard.press("2")
        expect(page.locator("#progress")).to_contain_text("1 of 2 decided")
        wait_until(lambda: len(list((tmp_path / "added").glob("*/*.png"))) == 1)
        (copy,) = (tmp_path / "added").glob("*/*.png")
        assert re.sub(r"\W", "", second).upper().startswith(f"2{copy.parent.name}")
        page.keyboard.press("d")
        expect(page.get_by_role("heading", level=2)).to_have_text("All decided")
        assert violations(page) == [] and fits(page)
