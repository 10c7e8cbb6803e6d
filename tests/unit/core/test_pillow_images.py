"""Pillow's own test images, of its source distribution: every reader gives the verdict and the pixels of Pillow."""

import io
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from fieldguide.core.formats import HEAD_BYTES, kind_of
from fieldguide.core.images import UnreadableImage, decode, inspect

pytestmark = pytest.mark.slow
LIMIT = 100_000_000  # pixels; Pillow has bombs among its images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bytes]]:
    """The files that are read, by name; skips where the distribution cannot be had."""
    folder: Path = tmp_path_factory.mktemp("pillow")
    wanted = ["--no-deps", "--no-binary", "pillow", f"pillow=={PIL.__version__}"]
    try:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--timeout", "20", "--retries", "0", *wanted]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=150)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"Pillow's source distribution cannot be had: {error}")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        files = [member for member in archive if member.isfile() and "/Tests/images/" in member.name]
        contents = {member.name.partition("/images/")[2]: archive.extractfile(member).read() for member in files}  # type: ignore[union-attr]
        yield {name: content for name, content in contents.items() if kind_of(content[:HEAD_BYTES], name).is_readable}


def pillow(content: bytes) -> Image.Image | None:
    """The upright image as Pillow alone decodes it, or None if it cannot be decoded or is too large."""
    try:
        with Image.open(io.BytesIO(content), formats=(kind_of(content[:HEAD_BYTES]).pillow,)) as image:
            if image.width * image.height > LIMIT:
                return None
            image.load()
            return ImageOps.exif_transpose(image)
    except Exception:
        return None


def test_every_image_has_pillows_verdict_in_every_reader(images: dict[str, bytes]) -> None:
    verdicts, n_read = {}, 0
    for name, content in images.items():
        for read in (decode, inspect):
            try:
                read(content, 32, LIMIT)
                verdicts[read] = True
            except UnreadableImage:
                verdicts[read] = False
        expected = pillow(content) is not None
        assert set(verdicts.values()) == {expected}, name
        n_read += expected
    assert n_read > 600


def test_images_without_a_profile_have_pillows_pixels(images: dict[str, bytes]) -> None:
    n_same = 0
    for name, content in images.items():
        image = pillow(content)
        if image is None or image.mode not in ("1", "L", "P", "RGB", "YCbCr", "CMYK") or image.has_transparency_data:
            continue
        if "icc_profile" in image.info or max(image.size) > 1024:
            continue
        assert (inspect(content, 1024)[1] == np.asarray(image.convert("RGB"))).all(), name
        n_same += 1
    assert n_same > 300
