"""Photographs of a large data set in packs: an added, changed or removed one touches its own pack only."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fieldguide.core.artifacts import Receipt
from fieldguide.core.errors import UserError
from fieldguide.core.files import file_hash
from fieldguide.core.images import bounded, decode, read_encoded
from fieldguide.core.params import Data
from fieldguide.core.paths import RAW, RECEIPT, packs_state
from fieldguide.sources import packs
from fieldguide.sources.archive import stored_members
from fieldguide.sources.index import index_images
from fieldguide.sources.packs import Photograph, cut, write_photographs
from fieldguide.sources.raw import bring_raw_data
from support.archives import write_folder
from support.settings import PARAMS

SIZE = 100  # bytes of a photograph


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packs of about ten photographs."""
    monkeypatch.chdir(tmp_path)
    RAW.mkdir(parents=True)
    monkeypatch.setattr(packs, "PACK_BYTES", 10 * SIZE)
    monkeypatch.setattr(packs, "ONE_FILE_BYTES", 20 * SIZE)
    return tmp_path


def content_of(name: str, version: int = 0) -> bytes:
    return hashlib.sha256(f"{name} {version}".encode()).digest() * 3 + b"four"


def photograph(name: str, version: int = 0, readable: bool = True, stamped: bool = True) -> Photograph:
    def read() -> bytes:
        if not readable:
            raise UserError(f"{name} was read")
        return content_of(name, version)

    return Photograph(name, SIZE, f"{name} {version}" if stamped else "", read)


def names_of(n: int, folder: str = "species") -> list[str]:
    return [f"{folder}/{number:04d}.jpg" for number in range(n)]


def read_back(files: Sequence[Path]) -> list[tuple[str, bytes]]:
    found = []
    for path in files:
        content = path.read_bytes()
        found += [(name, content[offset : offset + length]) for name, offset, length in stored_members(path)]
    return found


def test_a_small_data_set_is_one_file() -> None:
    names = names_of(20)
    files = write_photographs([photograph(name) for name in names], 0, 2)
    assert list(files) == [RAW / "images.zip"]
    assert read_back(list(files)) == [(name, content_of(name)) for name in names]
    assert not packs_state().exists()


@pytest.mark.parametrize("stamped", [True, False], ids=["known", "unknown"])
def test_a_large_one_is_packs_that_hold_every_photograph_in_order_and_bear_the_name_of_their_content(stamped: bool) -> None:
    names = names_of(300)
    files = write_photographs([photograph(name, stamped=stamped) for name in names], 0, 2)
    assert 10 < len(files) < 60
    assert read_back(list(files)) == [(name, content_of(name)) for name in names]
    assert {path.name for path in RAW.iterdir()} == {path.name for path in files}
    for path, file in files.items():
        assert (file.sha256, file.bytes) == (file_hash(path), path.stat().st_size)
        assert path.name == f"images-{file.sha256[:16]}.zip"
    assert json.loads(packs_state().read_text()) != {} or not stamped


@pytest.mark.parametrize("place", [0, 17, 150, 299, 300])
@pytest.mark.parametrize(
    ("added", "n_packs"), [("species/added.jpg", 1), ("species/new.jpg", 2)], ids=["within", "ends a pack"]
)
def test_an_added_photograph_changes_its_pack_or_cuts_it_and_the_others_are_not_read(
    place: int, added: str, n_packs: int
) -> None:
    names = names_of(300)
    before = write_photographs([photograph(name) for name in names], 0, 2)
    more = [*names[:place], added, *names[place:]]
    old = {tuple(one.id for one in pack) for pack in cut([photograph(name) for name in names])}
    new = {tuple(one.id for one in pack) for pack in cut([photograph(name) for name in more])}
    readable = {name for pack in new - old for name in pack}
    after = write_photographs([photograph(name, readable=name in readable) for name in more], 0, 2)
    assert read_back(list(after)) == [(name, content_of(name)) for name in more]
    assert len(set(before) - set(after)) <= 1
    assert 1 <= len(set(after) - set(before)) <= n_packs


@pytest.mark.parametrize("change", ["changed", "removed"])
def test_a_changed_or_removed_photograph_touches_its_own_pack(change: str) -> None:
    names = [name for pack in list(cut([photograph(name) for name in names_of(300)]))[:-1] for name in (one.id for one in pack)]
    before = write_photographs([photograph(name) for name in names], 0, 2)
    in_pack = next(pack for pack in cut([photograph(name) for name in names]) if len(pack) > 2)
    chosen = in_pack[0].id
    readable = {one.id for one in in_pack}
    now = [
        photograph(name, version=int(name == chosen), readable=name in readable)
        for name in names
        if change == "changed" or name != chosen
    ]
    after = write_photographs(now, 0, 2)
    assert len(set(before) ^ set(after)) == 2
    assert dict(read_back(list(after))).get(chosen) == (content_of(chosen, 1) if change == "changed" else None)


def test_without_knowing_what_changed_all_is_read_and_equal_packs_have_equal_names() -> None:
    names = names_of(100)
    first = write_photographs([photograph(name, stamped=False) for name in names], 0, 1)
    with pytest.raises(UserError, match="was read"):
        write_photographs([photograph(name, stamped=False, readable=False) for name in names], 0, 1)
    assert write_photographs([photograph(name) for name in names], 0, 1) == first


@pytest.mark.parametrize("damage", ["content", "missing", "state", "no state"])
def test_a_pack_that_is_not_as_it_was_is_written_again(damage: str) -> None:
    names = names_of(100)
    first = write_photographs([photograph(name) for name in names], 0, 1)
    victim = list(first)[1]
    whole = victim.read_bytes()
    if damage == "content":
        victim.write_bytes(whole[:-1] + b"x")
    elif damage == "missing":
        victim.unlink()
    else:
        packs_state().write_text("{" if damage == "state" else "[]")
    assert write_photographs([photograph(name) for name in names], 0, 1) == first
    assert victim.read_bytes() == whole


def test_an_attempt_after_an_error_goes_on_with_the_packs_that_are_there() -> None:
    names = names_of(300)
    every_pack = list(cut([photograph(name) for name in names]))
    done = {one.id for pack in every_pack[:5] for one in pack}
    with pytest.raises(UserError, match="was read"):
        write_photographs([photograph(name, readable=name in done) for name in names], 0, 1)
    assert not list(RAW.glob("*unnamed*"))
    files = write_photographs([photograph(name, readable=name not in done) for name in names], 0, 1)
    assert read_back(list(files)) == [(name, content_of(name)) for name in names]


def test_packs_have_their_size_on_average() -> None:
    photographs = [photograph(name) for name in names_of(20_000)]
    sizes = [sum(one.n_bytes for one in pack) for pack in cut(photographs)]
    assert sum(sizes) == 20_000 * SIZE
    assert np.mean(sizes) == pytest.approx(10 * SIZE, rel=0.1)
    twice = [sum(one.n_bytes for one in pack) for pack in cut([one._replace(n_bytes=SIZE // 2) for one in photographs])]
    assert np.mean(twice) == pytest.approx(10 * SIZE, rel=0.1)  # not so many photographs, but so many bytes


def picture(width: int, height: int, **options: object) -> bytes:
    stream = io.BytesIO()
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    Image.fromarray(ramp).save(stream, **{"format": "JPEG", "quality": 95} | options)
    return stream.getvalue()


def test_photographs_are_stored_at_a_bounded_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "ONE_FILE_BYTES", 1_000_000)
    originals = {"large.jpg": picture(400, 300), "small.png": picture(60, 80, format="PNG"), "broken.jpg": b"\xff\xd8\xff junk"}
    photographs = [Photograph(name, len(content), "", lambda c=content: c) for name, content in originals.items()]
    files = write_photographs(photographs, 100, 2)
    with zipfile.ZipFile(next(iter(files))) as archive:
        stored = {name: archive.read(name) for name in archive.namelist()}
    assert list(stored) == list(originals)
    assert Image.open(io.BytesIO(stored["large.jpg"])).size == (100, 75)
    assert {name: stored[name] for name in ("small.png", "broken.jpg")} == {
        name: originals[name] for name in ("small.png", "broken.jpg")
    }
    difference = decode(stored["large.jpg"], 64).astype(int) - decode(originals["large.jpg"], 64)
    assert abs(difference).mean() < 2
    assert write_photographs(photographs, 100, 1) == files  # the same bytes with another number of threads


def test_the_side_is_part_of_what_a_pack_depends_on() -> None:
    names = names_of(100)
    write_photographs([photograph(name) for name in names], 0, 1)
    with pytest.raises(UserError, match="was read"):
        write_photographs([photograph(name, readable=False) for name in names], 64, 1)


def data_of(**changes: object) -> Data:
    return PARAMS.data.model_copy(update={"dataset": "folder", "path": "photographs"} | changes)


def rows_of_raw() -> pd.DataFrame:
    return index_images(Receipt.read(RECEIPT), RAW)


def test_the_raw_data_are_packs_and_each_row_says_where_its_bytes_are(folder: Path) -> None:
    photographs = {f"{kind}/{number:02d}.jpg": content_of(f"{kind} {number}") for kind in "ABC" for number in range(40)}
    write_folder(folder / "photographs", photographs)
    for path in (folder / "photographs").rglob("*.jpg"):
        os.utime(path, (1e9, 1e9))
    receipt = bring_raw_data(data_of(), PARAMS.runtime)
    assert {path.name for path in RAW.iterdir()} == {*receipt.files, "receipt.json"}
    before = {name for name in receipt.files if name.endswith(".zip")}
    assert len(before) > 3
    rows = rows_of_raw()
    assert dict(zip(rows["id"], rows["class_name"], strict=True)) == {name: name[0] for name in sorted(photographs)}
    for row in rows.itertuples():
        assert read_encoded(RAW / row.file, row.offset, row.length) == photographs[row.id]
    write_folder(folder / "photographs", {"B/added.jpg": content_of("added")})
    (folder / "photographs" / "C" / "notes.txt").write_text("not a photograph")
    after = bring_raw_data(data_of(), PARAMS.runtime)
    assert len(before - set(after.files)) <= 1
    assert set(rows_of_raw()["id"]) == {*photographs, "B/added.jpg"}
    assert {path.name for path in RAW.iterdir()} == {*after.files, "receipt.json"}  # what is of no use is gone
    (folder / "photographs" / "C" / "notes.txt").unlink()
    assert "left_out.csv" not in bring_raw_data(data_of(), PARAMS.runtime).files


def test_the_receipt_says_at_which_side_photographs_are_stored(folder: Path) -> None:
    write_folder(folder / "photographs", {f"{kind}/1.jpg": picture(200, 150) for kind in "AB"})
    assert bring_raw_data(data_of(max_side_px=64), PARAMS.runtime).max_side_px == 64
    assert json.loads(RECEIPT.read_text())["max_side_px"] == 64
    bring_raw_data(data_of(), PARAMS.runtime)
    assert "max_side_px" not in json.loads(RECEIPT.read_text())


@pytest.mark.parametrize("changes", [{"dataset": "sample", "path": ""}, {"dataset": "tfrecords"}, {"dataset": "flowers"}])
def test_what_is_not_stored_anew_has_no_bounded_side(changes: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"data\.max_side_px is 512, .* set it to 0"):
        bring_raw_data(data_of(max_side_px=512, **changes), PARAMS.runtime)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_bounded_photograph_is_upright(orientation: int) -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[274] = orientation
    pixels = np.zeros((120, 200, 3), np.uint8)
    pixels[:60, :100] = (250, 30, 30)
    Image.fromarray(pixels).save(stream, "JPEG", exif=exif, quality=95)
    stored = bounded(stream.getvalue(), 50)
    with Image.open(io.BytesIO(stored)) as image:
        assert image.size == ((30, 50) if orientation in (6, 8) else (50, 30))
        assert 274 not in image.getexif()
    difference = decode(stored, 24).astype(int) - decode(stream.getvalue(), 24)
    assert abs(difference).mean() < 6
