"""The page in headless Chromium: every way to hand in a photograph, what is shown, and whether all can use it (axe)."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from support.app_server import Served, png, serving, write_examples, write_model
from support.browser import MARKS, RULES, chromium

pytestmark = MARKS
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
RED, GREY, BLACK = png((255, 0, 0)), png((128, 128, 128)), png((5, 5, 5))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("browsed")
    _, manifest = write_examples(folder)
    with serving(write_model(folder), "--manifest", str(manifest), "--raw", str(folder), "--max-files", "4") as server:
        yield server


@pytest.fixture
def open_page(browser: Browser, served: Served) -> Iterator[Callable[..., Page]]:
    """`open_page(**context)`: the front page; at the end no script failed and no other host was asked."""
    contexts, errors, hosts = [], [], set()

    def opened(path: str = "/", **settings: object) -> Page:
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if "Security Policy" in message.text else None)
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if request.url.startswith("http") else None)
        page.goto(f"http://127.0.0.1:{served.port}{path}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []
    assert hosts == {f"127.0.0.1:{served.port}"}


def file(content: bytes, name: str = "photo.png") -> dict[str, object]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def choose(page: Page, *files: dict[str, object]) -> None:
    page.get_by_label("Choose photographs").set_input_files(list(files))


def hand_in(page: Page, kind: str, content: bytes) -> None:
    """A drop or a paste of one file, as the browser's own event carries it."""
    page.evaluate(
        """([kind, content]) => {
            const data = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            data.items.add(new File([bytes], "handed.png", { type: "image/png" }));
            const settings = { bubbles: true, cancelable: true };
            const event = kind === "paste"
                ? new ClipboardEvent("paste", { ...settings, clipboardData: data })
                : new DragEvent(kind, { ...settings, dataTransfer: data });
            document.body.dispatchEvent(event);
        }""",
        [kind, base64.b64encode(content).decode()],
    )


def plates(page: Page):
    return page.locator(".plate:not(.pending)")


def violations(page: Page) -> list[str]:
    return [f"{found['id']}: {found['nodes'][0]['html']}" for found in Axe().run(page, options=RULES).response["violations"]]


def test_a_click_opens_the_chooser_and_the_photograph_is_named(open_page: Callable[..., Page]) -> None:
    page = open_page(**DESKTOP)
    with page.expect_file_chooser() as chooser:
        page.get_by_label("Choose photographs").click()
    assert chooser.value.is_multiple()
    chooser.value.set_files([file(RED, "wing.png")])
    plate = plates(page)
    expect(plate.get_by_role("heading")).to_have_text("Red")
    expect(plate.locator(".file-name")).to_have_text("wing.png")
    expect(plate.locator(".answers li")).to_have_count(4)
    expect(page.get_by_role("status")).to_contain_text("Plate I: Identified. Red")
    assert page.locator(".likeness img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 256


def test_the_keyboard_alone_is_enough(open_page: Callable[..., Page]) -> None:
    page = open_page(**DESKTOP)
    page.on("filechooser", lambda _: None)  # from now on the browser tells of it; begun just before the key, it may be late
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_label("Choose photographs")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files([file(RED)])
    expect(plates(page)).to_have_count(1)
    page.get_by_role("switch").focus()
    page.keyboard.press("Space")
    expect(page.locator(".looked")).to_be_visible()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_photograph_can_be_dropped_or_pasted(open_page: Callable[..., Page], kind: str) -> None:
    page = open_page(**DESKTOP)
    if kind == "drop":
        hand_in(page, "dragover", RED)
        expect(page.locator("body")).to_have_class("dropping")
    hand_in(page, kind, RED)
    expect(plates(page).get_by_role("heading")).to_have_text("Red")
    expect(page.locator("body")).not_to_have_class("dropping")


@pytest.mark.slow
def test_several_at_once_keep_their_order_and_the_bad_one_stands_for_itself(open_page: Callable[..., Page]) -> None:
    page = open_page(**DESKTOP)
    choose(page, file(RED, "a.png"), file(b"no image", "b.png"), file(GREY, "c.png"), file(BLACK, "d.png"))
    expect(plates(page)).to_have_count(4)
    assert plates(page).locator(".file-name").all_text_contents() == ["a.png", "b.png", "c.png", "d.png"]
    assert plates(page).locator(".verdict").all_text_contents() == [
        "Identified",
        "No answer",
        "Not sure",
        "Not one of the species I know",
    ]
    assert plates(page).locator(".number").all_text_contents() == ["Plate I", "Plate II", "Plate III", "Plate IV"]
    choose(page, *[file(RED)] * 5)
    expect(page.get_by_role("alert")).to_have_text("Only the first 4 of 5 were taken.")
    expect(plates(page)).to_have_count(8)


@pytest.mark.slow
def test_the_photograph_is_there_before_the_answer(open_page: Callable[..., Page]) -> None:
    page = open_page(**DESKTOP)
    page.route("**/", lambda route: None if route.request.method == "POST" else route.continue_())
    choose(page, file(RED, "wait.png"))
    waiting = page.locator(".plate.pending")
    expect(waiting.locator(".file-name")).to_have_text("wait.png")
    assert waiting.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 40


@pytest.mark.slow
def test_a_server_that_is_gone_or_busy_is_told(open_page: Callable[..., Page]) -> None:
    page = open_page(**DESKTOP)
    page.route("**/", lambda route: route.abort() if route.request.method == "POST" else route.continue_())
    choose(page, file(RED))
    expect(plates(page).get_by_role("heading")).to_have_text("The server cannot be reached.")
    page.unroute("**/")
    tries = []

    def busy_once(route) -> None:
        tries.append(1)
        route.fulfill(status=503, headers={"Retry-After": "0"}) if len(tries) == 1 else route.continue_()

    page.route("**/", busy_once)
    choose(page, file(RED))
    expect(plates(page).first.get_by_role("heading")).to_have_text("Red")
    assert len(tries) == 2


@pytest.mark.slow
def test_where_it_looked_is_switched_on_and_off(open_page: Callable[..., Page]) -> None:
    page = open_page(**DESKTOP)
    choose(page, file(RED))
    looked, switch = page.locator(".looked"), page.get_by_role("switch", name="Where it looked")
    expect(looked).to_be_hidden()
    switch.click()
    expect(looked).to_be_visible()
    assert looked.evaluate("image => image.naturalWidth") == 480
    switch.click()
    expect(looked).to_be_hidden()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_all_can_use_it(open_page: Callable[..., Page], tmp_path: Path, device: dict, scheme: str) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce", **device)
    assert violations(page) == []
    choose(page, file(RED), file(GREY), file(BLACK), file(b"bad"))
    expect(plates(page)).to_have_count(4)
    page.get_by_role("switch").first.check()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part < 60)")
    assert dark == (scheme == "dark")
    page.get_by_role("link", name="The model and its species").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("The Model")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_a_phone_offers_its_camera_and_a_narrow_or_magnified_page_needs_no_sideways_scrolling(
    open_page: Callable[..., Page],
) -> None:
    page = open_page(**PHONE)
    expect(page.get_by_text("Take a photograph")).to_be_visible()
    assert page.get_by_label("Take a photograph").get_attribute("capture") == "environment"
    narrow = open_page(viewport={"width": 320, "height": 256})
    choose(narrow, file(RED, "a-file-name-" + "without-an-end-" * 9 + ".png"))
    expect(plates(narrow)).to_have_count(1)
    assert narrow.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(narrow.get_by_text("Take a photograph")).to_be_hidden()


def test_it_works_without_a_script(open_page: Callable[..., Page]) -> None:
    page = open_page(java_script_enabled=False, **DESKTOP)
    choose(page, file(RED, "a.png"), file(BLACK, "b.png"))
    page.get_by_role("button", name="Identify").click()
    expect(plates(page)).to_have_count(2)
    expect(plates(page).first.get_by_role("heading")).to_have_text("Red")
    page.get_by_role("switch").first.check()
    expect(page.locator(".looked").first).to_be_visible()


@pytest.mark.slow
def test_names_that_look_like_code_are_only_shown(open_page: Callable[..., Page]) -> None:
    page = open_page(**DESKTOP)
    name = '"><img src=x onerror=alert(1)>.png'
    choose(page, file(RED, name), file(b"bad", name))
    expect(plates(page)).to_have_count(2)
    assert set(plates(page).locator(".file-name").all_text_contents()) == {name}
