"""TFRecord shards, made here byte by byte from the format's specification and, in `real`, by TensorFlow itself."""

import gzip
import os
import random
import re
import tracemalloc
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from fieldguide.core.errors import UserError
from fieldguide.sources.tfrecord import Record, count_in_name, incomplete_series, read_shard
from support import REAL_DATA
from support.tfrecords import JPEG, crc32c, example, field, floats, flower, header, ints, record, texts, varint, write

FLOWERS = REAL_DATA / "flowers.zip"
WRITTEN_BY_TENSORFLOW = bytes.fromhex("f531000000000000 d2ff53f5")  # first header of train/00-192x192-360.tfrec


def read(path: Path, image: str = "image", label: str = "class", identity: str = "id") -> list[Record]:
    return list(read_shard(path, image_feature=image, label_feature=label, id_feature=identity))


def error_of(path: Path, **features: str) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **features)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "known"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # this and the next three: RFC 3720, appendix B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_writer_of_these_tests_computes_known_crcs(content, known):
    assert crc32c(content) == known


def test_writer_of_these_tests_masks_as_tensorflow_does():
    assert header(12789) == WRITTEN_BY_TENSORFLOW


def test_records_point_at_the_image_bytes(tmp_path):
    images = [b"\xff\xd8first\xff\xd9", b"x" * 70_000, b"y"]
    labels, names = [0, 103, 2**63 - 1], ["a", "é/日本", "c c"]
    rows = zip(images, labels, names, strict=True)
    path = write(tmp_path, *(flower(image, label, name.encode()) for image, label, name in rows))
    found = read(path)
    content = path.read_bytes()
    assert [content[row.offset : row.offset + row.length] for row in found] == images
    assert [(row.index, row.label, row.id) for row in found] == list(zip(range(3), labels, names, strict=True))


def test_records_come_one_by_one_before_a_later_fault(tmp_path):
    path = write(tmp_path, flower(), flower(image=b""))
    rows = read_shard(path, image_feature="image", label_feature="class", id_feature="id")
    assert next(rows).label == 7
    with pytest.raises(UserError, match="record 1 at byte"):
        next(rows)


def test_any_order_of_features_and_both_encodings_of_integers(tmp_path):
    chance = random.Random(0)
    for _ in range(200):
        image, label, number = chance.randbytes(chance.randrange(1, 400)), chance.randrange(2**40), chance.randrange(99)
        features = [
            ("image", texts(image)),
            ("class", ints(label, packed=chance.random() < 0.5)),
            ("id", ints(number, packed=chance.random() < 0.5)),
            ("thumbnail", texts(image[:9])),
            ("box", floats(0.5, 1.5)),
            ("empty", b""),
        ]
        chance.shuffle(features)
        path = write(tmp_path, flower(), example(*features))
        row = read(path)[1]
        assert path.read_bytes()[row.offset : row.offset + row.length] == image
        assert (row.label, row.id) == (label, str(number))


def test_offset_is_not_misled_by_what_looks_like_the_image(tmp_path):
    image = bytes(1000) + b"end"
    length = varint(len(image))
    long_form = length[:-1] + bytes([length[-1] | 0x80, 0])  # a varint need not be the shortest
    last = field(1, b"\x0a" + long_form + image)
    payload = example(
        ("decoy", texts(bytes(999), bytes(5000))), ("image", texts(b"replaced")), ("class", ints(1)), ("image", last)
    )
    path = write(tmp_path, payload)
    (row,) = read(path, identity="")
    assert path.read_bytes()[row.offset : row.offset + row.length] == image


def test_other_feature_names(tmp_path):
    payload = example(("image/encoded", texts(JPEG)), ("image/class/label", ints(3)), ("image/filename", texts(b"n01.jpg")))
    path = write(tmp_path, payload, name="train-00000-of-00001")
    (row,) = read(path, "image/encoded", "image/class/label", "image/filename")
    assert (row.length, row.label, row.id) == (len(JPEG), 3, "n01.jpg")
    (row,) = read(path, "image/encoded", "image/class/label", "")
    assert row.id == "train-00000-of-00001/0"


def test_ids_are_made_of_shard_and_record_when_no_feature_is_named(tmp_path):
    path = write(tmp_path, flower(), flower(), name="05-192x192-2.tfrec")
    assert [row.id for row in read(path, identity="")] == ["05-192x192-2/0", "05-192x192-2/1"]


def test_shard_without_labels(tmp_path):
    unlabelled = example(("image", texts(JPEG)), ("id", texts(b"t")))
    of_no_kind = example(("image", texts(JPEG)), ("id", texts(b"t")), ("class", b""))
    path = write(tmp_path, unlabelled, of_no_kind)
    assert [row.label for row in read(path)] == [None, None]


@pytest.mark.parametrize("none", [ints(-1), ints(), floats(), texts(), texts(b"")])
def test_an_empty_feature_and_minus_one_are_no_label(tmp_path, none):
    path = write(tmp_path, example(("image", texts(JPEG)), ("id", texts(b"t")), ("class", none)))
    assert [row.label for row in read(path)] == [None]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (ints(0, 0, 1, 0), 2),
        (ints(1, 0, packed=False), 0),
        (floats(0, 0, 0, 1), 3),
        (texts(b"daisy"), "daisy"),
        (texts("孔雀蛺蝶".encode()), "孔雀蛺蝶"),
    ],
)
def test_labels_may_be_one_hot_or_class_names(tmp_path, value, label):
    path = write(tmp_path, example(("image", texts(JPEG)), ("id", texts(b"t")), ("class", value)))
    assert [row.label for row in read(path)] == [label]


def test_labels_in_some_records_only(tmp_path):
    unlabelled = example(("image", texts(JPEG)), ("id", texts(b"t")))
    at = len(record(flower()))
    assert error_of(write(tmp_path, flower(), unlabelled, flower())) == (
        f"record 1 at byte {at}: feature 'class' has no label (it is missing, empty or -1), but the records before have one; "
        "label all records of the shard or none"
    )
    at = 2 * len(record(unlabelled))
    assert error_of(write(tmp_path, unlabelled, unlabelled, flower())) == (
        f"record 2 at byte {at}: feature 'class' has a label, but the records before have none;"
        " label all records of the shard or none"
    )


WRONG_LABEL = "feature 'class' must be an integer, a class name or one-hot, got"
SET_LABEL = "set data.features.label"
IMAGE, LABEL, ID = ("image", texts(JPEG)), ("class", ints(7)), ("id", texts(b"a1"))


@pytest.mark.parametrize(
    ("features", "text"),
    [
        ([LABEL, ID], "feature 'image' is missing, got 'class' (int64), 'id' (bytes); set data.features.image"),
        ([], "feature 'image' is missing, got none; set data.features.image"),
        ([("image", b"")], "feature 'image' is missing, got 'image' (no value); set data.features.image"),
        ([("image", ints(1)), LABEL, ID], "feature 'image' must be bytes, got int64; set data.features.image"),
        ([("image", floats(1)), LABEL, ID], "feature 'image' must be bytes, got float; set data.features.image"),
        ([("image", texts()), LABEL, ID], "feature 'image' must have 1 value, got 0; set data.features.image"),
        (
            [("image", texts(b"")), LABEL, ID],
            "feature 'image' must have 1 value, got an empty one; set data.features.image",
        ),
        (
            [("image", texts(JPEG, JPEG)), LABEL, ID],
            "feature 'image' must have 1 value, got 2; set data.features.image",
        ),
        ([IMAGE, ("class", floats(7)), ID], f"{WRONG_LABEL} 7.0 (float); {SET_LABEL}"),
        ([IMAGE, ("class", floats(0.5, 0.5)), ID], f"{WRONG_LABEL} 2 values (float); {SET_LABEL}"),
        ([IMAGE, ("class", floats(0, float("nan"), 1)), ID], f"{WRONG_LABEL} 3 values (float); {SET_LABEL}"),
        ([IMAGE, ("class", ints(0, 1, 1)), ID], f"{WRONG_LABEL} 3 values (int64); {SET_LABEL}"),
        ([IMAGE, ("class", ints(0, 0)), ID], f"{WRONG_LABEL} 2 values (int64); {SET_LABEL}"),
        ([IMAGE, ("class", ints(-1, 0, 1)), ID], f"{WRONG_LABEL} 3 values (int64); {SET_LABEL}"),
        ([IMAGE, ("class", texts(b"a", b"b")), ID], f"{WRONG_LABEL} 2 values (bytes); {SET_LABEL}"),
        ([IMAGE, ("class", texts(b"\xff")), ID], rf"feature 'class' must be UTF-8, got b'\xff'; {SET_LABEL}"),
        ([IMAGE, ("class", ints(-2)), ID], f"feature 'class' must be >= 0, or -1 for no label, got -2; {SET_LABEL}"),
        ([IMAGE, LABEL], "feature 'id' is missing, got 'class' (int64), 'image' (bytes); set data.features.id"),
        ([IMAGE, LABEL, ("id", floats(1))], "feature 'id' must be bytes or int64, got float; set data.features.id"),
        ([IMAGE, LABEL, ("id", texts(b"\xff"))], r"feature 'id' must be UTF-8, got b'\xff'; set data.features.id"),
        ([IMAGE, LABEL, ("id", texts(b""))], "feature 'id' must have 1 value, got an empty one; set data.features.id"),
        ([IMAGE, LABEL, ("id", texts(b"a", b"b"))], "feature 'id' must have 1 value, got 2; set data.features.id"),
    ],
)
def test_wrong_features_name_shard_record_byte_value_and_remedy(tmp_path, features, text):
    at = len(record(flower()))
    assert error_of(write(tmp_path, flower(), example(*features))) == f"record 1 at byte {at}: {text}"


def test_many_features_are_listed_on_one_line(tmp_path):
    path = write(tmp_path, example(*((f"f{number:02}\n", ints(1)) for number in range(40))))
    assert r"got 'f00\n' (int64), " in error_of(path)
    assert r"'f11\n' (int64) and 28 more; set data.features.image" in error_of(path)


@pytest.mark.parametrize(
    "payload",
    [
        b"no message at all",
        flower()[:-1],
        b"\x0a" + varint(10**6) + flower()[3:],  # would reach into the records that follow
        example(("image", b"\x0a\x20\x0a\x7f" + bytes(30)), LABEL, ID),  # BytesList past the feature's end
        field(1, field(1, field(1, b"\xff") + field(2, texts(JPEG)))),  # a name that is not UTF-8
    ],
)
def test_content_that_is_no_example(tmp_path, payload):
    assert error_of(write(tmp_path, flower(), payload, flower())) == (
        f"record 1 at byte {len(record(flower()))}: not a tf.train.Example ({len(payload)} bytes); download the shard again"
    )


def test_wrong_checksums(tmp_path):
    first, second = record(flower()), record(flower(label=8))
    path, at = tmp_path / "shard.tfrec", len(first)
    path.write_bytes(first + second[:8] + bytes(4) + second[12:])
    computed = int.from_bytes(second[8:12], "little")
    assert error_of(path) == (
        f"record 1 at byte {at}: the length's CRC32C is {computed:#010x}, but 0x00000000 is stored; download the shard again"
    )
    path.write_bytes(first + second[:-4] + bytes(4))
    computed = int.from_bytes(second[-4:], "little")
    assert error_of(path) == (
        f"record 1 at byte {at}: the content's CRC32C is {computed:#010x}, but 0x00000000 is stored; download the shard again"
    )


def test_a_thousand_of_a_thousand_flipped_bits_are_found_in_their_record(tmp_path):
    chance = random.Random(1)
    shard = [record(flower(chance.randbytes(300), label, b"id%d" % label)) for label in range(8)]
    content, starts = b"".join(shard), [sum(map(len, shard[:index])) for index in range(8)]
    path = tmp_path / "shard.tfrec"
    for bit in chance.sample(range(8 * len(content)), 1000):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        index = max(index for index in range(8) if starts[index] <= bit // 8)
        assert error_of(path).startswith(f"record {index} at byte {starts[index]}: the ")


def test_every_cut_is_found_and_what_stands_before_it_is_read(tmp_path):
    one = record(flower())
    for name in ("00-8x8-2.tfrec", "no count.tfrec"):
        path = tmp_path / name
        for cut in range(2 * len(one)):
            path.write_bytes((one + one)[:cut])
            whole, left = divmod(cut, len(one))
            if left:
                expected = f"{left} of 12 bytes of the header" if left < 12 else f"{left - 12} of "
                assert error_of(path).startswith(f"record {whole} at byte {whole * len(one)}: truncated, {expected}")
            elif count_in_name(name):
                assert error_of(path).startswith(f"its name states 2 records, but it contains {whole}; download the shard")
            else:
                assert len(read(path)) == whole


def test_cut_while_it_is_read(tmp_path):
    path = write(tmp_path, flower(), flower(image=bytes(50_000)))
    size, at = path.stat().st_size, len(record(flower()))
    rows = read_shard(path, image_feature="image", label_feature="class", id_feature="id")
    next(rows)
    os.truncate(path, size - 10_000)
    wrong = f"record 1 at byte {at}: the file of {size} bytes was truncated while reading; download the shard again"
    with pytest.raises(UserError, match=re.escape(wrong)):
        next(rows)


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (-1, "length must be in [0, 2147483647], got -1; download the shard again"),
        (-(2**63), "length must be in [0, 2147483647], got -9223372036854775808; download the shard again"),
        (2**63 - 1, "length must be in [0, 2147483647], got 9223372036854775807; download the shard again"),
        (2**31, "length must be in [0, 2147483647], got 2147483648; download the shard again"),
        (2**31 - 1, "truncated, 104 of 2147483651 bytes; download the shard again"),
        (101, "truncated, 104 of 105 bytes; download the shard again"),
    ],
)
def test_impossible_length_with_a_right_checksum_is_refused_before_reading(tmp_path, length, text):
    first, path = record(flower()), tmp_path / "shard.tfrec"
    path.write_bytes(first + header(length) + bytes(104))
    read(write(tmp_path, flower(), name="warm.tfrec"))  # the message class, made once, is not to be measured
    tracemalloc.start()
    try:
        assert error_of(path) == f"record 1 at byte {len(first)}: {text}"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_length_beyond_protobuf_is_refused_even_where_the_file_is_as_long(tmp_path):
    path = tmp_path / "shard.tfrec"
    path.write_bytes(header(3 * 2**30))
    os.truncate(path, 4 * 2**30)  # sparse: takes no space
    assert error_of(path).startswith("record 0 at byte 0: length must be in [0, 2147483647], got 3221225472;")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("00-192x192-798.tfrec", 798),
        ("16-512x512-0.tfrec", 0),
        ("train00-2071.tfrec", 2071),
        ("flowers.tfrec", None),
        ("train-00001.tfrec", None),
        ("train1-00001.tfrec", None),
        ("train-00000-of-01024", None),
        ("train-00000-of-16.tfrec", None),
        ("00-192x192-798.tfrec.gz", None),
        ("00-192x192--798.tfrec", None),
        ("00-192x192-\u0667.tfrec", None),
        ("", None),
    ],
)
def test_count_in_name(name, count):
    assert count_in_name(name) == count


def test_series_that_lack_shards():
    names = ["a/train-00000-of-00003", "a/train-00002-of-00003", "b-valid.tfrecord-00000-of-00001", "c.tfrec"]
    assert incomplete_series(names) == [("a/train", 2, 3)]
    assert incomplete_series([*names, "a/train-00001-of-00003"]) == []
    assert incomplete_series(["flowers_train_00001-of-00002.tfrecord"]) == [("flowers_train", 1, 2)]


@pytest.mark.parametrize("stated", [0, 2, 4])
def test_count_in_name_against_the_records(tmp_path, stated):
    path = write(tmp_path, flower(), flower(), flower(), name=f"03-192x192-{stated}.tfrec")
    assert error_of(path) == (
        f"its name states {stated} records, but it contains 3; download the shard again,"
        f" or rename it if {stated} is not a count"
    )


def test_compressed_shard(tmp_path):
    path = tmp_path / "shard.tfrec"
    path.write_bytes(gzip.compress(record(flower())))
    assert error_of(path) == "compressed by gzip; decompress it (gunzip), because images are read at their offsets"


def test_missing_file_and_folder(tmp_path):
    remedy = "fix the permissions or download the shard again"
    assert error_of(tmp_path / "none.tfrec") == f"No such file or directory; {remedy}"
    assert error_of(tmp_path) == f"Is a directory; {remedy}"


@pytest.mark.real
@pytest.mark.skipif(not FLOWERS.is_file(), reason=f"{FLOWERS} is not on this machine")
def test_shards_that_tensorflow_wrote(tmp_path):
    with zipfile.ZipFile(FLOWERS) as archive:
        archive.extractall(tmp_path)
    ids: set[str] = set()
    for split, count in {"train": 2877, "val": 733, "test": 733}.items():
        found = 0
        for path in sorted((tmp_path / "tfrecords-jpeg-192x192" / split).glob("*.tfrec")):
            rows, content = read(path), path.read_bytes()
            assert len(rows) == count_in_name(path.name)
            for row in rows:
                image = content[row.offset : row.offset + row.length]
                assert image.startswith(b"\xff\xd8\xff")
                assert image.endswith(b"\xff\xd9")
                with Image.open(BytesIO(image)) as picture:
                    assert picture.size == (192, 192)
                    picture.load()
                assert (row.label is None) if split == "test" else (row.label in range(104))
            found += len(rows)
            ids.update(row.id for row in rows)
        assert found == count
    assert len(ids) == 2877 + 733 + 733
