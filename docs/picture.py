"""docs/page.png, the README's picture: the page answering a photograph of the sample, and one of none of its species.

After `make run`: `python docs/picture.py`. It needs Chromium (or a browser that CHROMIUM names) and the group dev.
"""

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import FilePayload, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 1280, 1800
SHARE = 0.72  # of the page's pixels, and few colours: a file of less than 100 kB
COLOURS = 96


def main() -> None:
    server = subprocess.Popen([sys.executable, "-m", "fieldguide", "serve", "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        address = [server.stdout.readline() for _ in range(2)][1].removeprefix("-> ").strip()
        shot = Image.open(io.BytesIO(screenshot(address))).convert("RGB")
    finally:
        server.terminate()
        server.wait()
    small = shot.resize((round(shot.width * SHARE), round(shot.height * SHARE)), Image.Resampling.LANCZOS)
    target = ROOT / "docs" / "page.png"
    small.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"-> {target.relative_to(ROOT)} {target.stat().st_size} bytes")


def screenshot(address: str) -> bytes:
    """The page at an address with its answers to `photographs`, as PNG."""
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
        page.goto(address)
        page.set_input_files("input[type=file] >> nth=0", photographs())
        expect(page.locator("#plates .plate .answers")).to_have_count(2, timeout=120_000)
        page.locator(".switch input").first.check()
        page.wait_for_timeout(1000)  # for the examples beside the answers
        return page.locator("#plates").screenshot(animations="disabled")


def photographs() -> list[FilePayload]:
    """One of the test split, and a chessboard."""
    with zipfile.ZipFile("data/raw/images.zip") as archive:
        name = sorted(name for name in archive.namelist() if name.startswith("test/"))[7]
        butterfly = archive.read(name)
    board = np.kron(np.indices((8, 8)).sum(axis=0) % 2 * 255, np.ones((16, 16))).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(board).save(stream, "PNG")
    return [
        {"name": Path(name).name, "mimeType": "image/jpeg", "buffer": butterfly},
        {"name": "chessboard.png", "mimeType": "image/png", "buffer": stream.getvalue()},
    ]


if __name__ == "__main__":
    main()
