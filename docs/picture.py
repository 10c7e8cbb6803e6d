"""docs/page.png, the README's picture: the page answering two photographs of the sample and one of none of its species.

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
from playwright.sync_api import FilePayload, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 1280, 860
SHARE = 0.68  # of the page's pixels, and few colours: a file of less than 100 kB
COLOURS = 96


def main() -> None:
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium")
    command = [sys.executable, "-m", "app", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout
        print(server.stdout.readline(), flush=True)
        address = server.stdout.readline().removeprefix("-> ").strip()
        page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
            viewport={"width": WIDTH, "height": HEIGHT}
        )
        page.goto(address)
        page.set_input_files("input[type=file] >> nth=0", photographs())
        page.wait_for_function("document.querySelectorAll('#plates .plate:not(.pending)').length == 3", timeout=120_000)
        page.locator("#plates").scroll_into_view_if_needed()
        page.evaluate("document.querySelector('#plates').scrollIntoView()")
        shot = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
        server.terminate()
    small = shot.resize((round(WIDTH * SHARE), round(HEIGHT * SHARE)), Image.Resampling.LANCZOS)
    target = ROOT / "docs" / "page.png"
    small.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"-> {target.relative_to(ROOT)} {target.stat().st_size} bytes")


def photographs() -> list[FilePayload]:
    """Two of the test split, and a chequered board."""
    with zipfile.ZipFile("data/raw/images.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("test/"))
        chosen: list[FilePayload] = [
            {"name": Path(name).name, "mimeType": "image/jpeg", "buffer": archive.read(name)} for name in (names[7], names[-3])
        ]
    board = np.kron(np.indices((8, 8)).sum(axis=0) % 2 * 255, np.ones((16, 16))).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(board).save(stream, "PNG")
    return [*chosen, {"name": "chessboard.png", "mimeType": "image/png", "buffer": stream.getvalue()}]


if __name__ == "__main__":
    main()
