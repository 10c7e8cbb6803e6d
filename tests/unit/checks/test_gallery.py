"""Pages of pictures: whole in one file, and safe whatever a photograph is called."""

import base64
import io
import re

import numpy as np
from PIL import Image

from fieldguide.checks.gallery import PICTURE_PX, page

RED = np.full((300, 200, 3), (200, 0, 0), np.uint8)


def test_every_picture_is_inside_the_page_and_small() -> None:
    html = page("Twice", "one pair", [("same", [(RED, "a"), (RED, "b")])])
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert len(pictures) == html.count("<img") == 2
    image = Image.open(io.BytesIO(base64.b64decode(pictures[0])))
    assert image.height == PICTURE_PX
    assert abs(image.width - PICTURE_PX * 2 / 3) <= 1
    assert np.abs(np.asarray(image.convert("RGB"), int) - (200, 0, 0)).max() < 8


def test_the_page_asks_no_other_host_for_anything() -> None:
    html = page("Twice", "one pair", [("same", [(RED, "a")])])
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html.replace("image/jpeg;base64", ""))


def test_names_are_escaped() -> None:
    name = '<script>alert("1")</script> & "B"'
    html = page(name, name, [(name, [(RED, name)])])
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 6  # title twice, introduction, heading, caption, alternative text


def test_a_page_of_nothing_is_a_page() -> None:
    assert page("Twice", "0 pairs", []).endswith("</body></html>\n")
