"""Index of a TFRecord shard without TensorFlow: offset, label and id of each image, with verified checksums.

Each `Record` becomes a row of the manifest, so that the loader reads images in shards like all others. A shard is a sequence of
records, little-endian (tensorflow.org/tutorials/load_data/tfrecord):
    int64 length | uint32 masked CRC32C of it | `length` bytes, a tf.train.Example | uint32 masked CRC32C of these
"""

import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format
from google_crc32c import value as crc32c

from fieldguide.core.errors import UserError

HEADER = struct.Struct("<qI")  # TensorFlow's length is unsigned; read as signed, an impossible length is negative
CHECKSUM = struct.Struct("<I")
LONGEST_RECORD_BYTES = (1 << 31) - 1  # protobuf's limit for a message
GZIP_MAGIC = b"\x1f\x8b"
NAMED_COUNT = re.compile(r".*[0-9]-(0|[1-9][0-9]*)\.tfrec")  # not train-00001.tfrec, train-00000-of-01024.tfrec
NAMED_TOTAL = re.compile(r"([0-9]{5})-of-([0-9]{5})")
KINDS = {"image": ("bytes_list",), "id": ("bytes_list", "int64_list")}
TYPES = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64", None: "no value"}
HEAD_BYTES = 256  # a guess: enough to identify the image
LISTED_FEATURES = 12  # a guess: enough to find the right name, but still one line
AGAIN = "download the shard again"
# tensorflow/core/example/feature.proto and example.proto
SCHEMA = """
name: "fieldguide/example.proto" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64List" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type { name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 label: LABEL_OPTIONAL type_name: ".BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 label: LABEL_OPTIONAL type_name: ".FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 label: LABEL_OPTIONAL type_name: ".Int64List" oneof_index: 0 } }
message_type { name: "Features"
  field { name: "feature" number: 1 label: LABEL_REPEATED type_name: ".Features.FeatureEntry" }
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type_name: ".Feature" } } }
message_type { name: "Example" field { name: "features" number: 1 label: LABEL_OPTIONAL type_name: ".Features" } }
"""
POOL = descriptor_pool.DescriptorPool()  # separate, so that TensorFlow can be imported too
POOL.Add(text_format.Parse(SCHEMA, descriptor_pb2.FileDescriptorProto()))
EXAMPLE: Any = message_factory.GetMessageClass(POOL.FindMessageTypeByName("Example"))


@dataclass(frozen=True, slots=True)
class Record:
    """An image of a shard: `length` encoded bytes at `offset` in the file."""

    index: int  # position in the shard, from 0
    offset: int  # bytes from the start of the file to the encoded image
    length: int  # bytes
    label: int | str | None  # a number >= 0 or the class name; None in every record of a shard without labels
    id: str


def count_in_name(name: str) -> int | None:
    """The number of records at the end of a file name, as Kaggle writes it (`00-192x192-798.tfrec`: 798), or None."""
    match = NAMED_COUNT.fullmatch(name)
    return int(match[1]) if match else None


def series_of(name: str) -> tuple[str, int, int] | None:
    """Series, number and total of a shard whose name states them (`train-00000-of-00010`: train, 0, 10), or None."""
    match = NAMED_TOTAL.search(name)
    return (name[: match.start()].rstrip("-_."), int(match[1]), int(match[2])) if match else None


def incomplete_series(names: Iterable[str]) -> list[tuple[str, int, int]]:
    """Of shards whose names state a total (`train-00000-of-00010`) the series with fewer: name, shards there, total."""
    there: dict[tuple[str, int], set[int]] = {}
    for series, number, total in filter(None, map(series_of, names)):
        there.setdefault((series, total), set()).add(number)
    return [(series, len(numbers), total) for (series, total), numbers in sorted(there.items()) if len(numbers) < total]


def read_shard(path: Path, *, image_feature: str, label_feature: str, id_feature: str) -> Iterator[Record]:
    """The records of `path` in order, one at a time in memory, after verifying both checksums.

    A label is an integer, a one-hot vector of integers or floats, or a class name. An unlabelled record has no
    `label_feature`, no value in it, -1 or "". With an empty `id_feature` ids are `<shard's stem>/<index>`; otherwise the
    feature must exist. Raises `UserError` with path, record number and byte offset for damage, for a feature that is missing,
    of a wrong type or number of values, for a label below -1, and for labels in only some of the records; after the last
    record, for a number of records that differs from the file name's. A file cut between records is detected only by that
    number.
    """
    index, labelled = -1, None
    try:
        with path.open("rb") as shard:
            for index, (where, start, payload) in enumerate(_payloads(shard, path)):
                features = _features(payload, where)
                image = _value(features, "image", image_feature, where)
                label = _label(features, label_feature, where)
                if labelled not in (None, label is not None):
                    wrong = (
                        "has no label (it is missing, empty or -1), but the records before have one"
                        if labelled
                        else "has a label, but the records before have none"
                    )
                    raise UserError(f"{where}: feature {label_feature!r} {wrong}; label all records of the shard or none")
                labelled = label is not None
                name = str(_value(features, "id", id_feature, where)) if id_feature else f"{path.stem}/{index}"
                head = payload.index(image[:HEAD_BYTES])  # searching for a long image is slower than reading it
                position = head if payload.startswith(image, head) else payload.index(image)
                yield Record(index, start + HEADER.size + position, len(image), label, name)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; fix the permissions or {AGAIN}") from error
    stated = count_in_name(path.name)
    if stated not in (None, index + 1):
        wrong = f"{path}: its name states {stated} records, but it contains {index + 1}"
        raise UserError(f"{wrong}; {AGAIN}, or rename it if {stated} is not a count")


def _payloads(shard: BinaryIO, path: Path) -> Iterator[tuple[str, int, bytes]]:
    """For each record its name in errors, byte offset and payload, after verifying checksums and lengths."""
    size = os.fstat(shard.fileno()).st_size
    start = index = 0
    while start < size:
        where = f"{path}: record {index} at byte {start}"
        header = shard.read(HEADER.size)
        if len(header) < HEADER.size:
            raise UserError(f"{where}: truncated, {len(header)} of {HEADER.size} bytes of the header; {AGAIN}")
        length, stored = HEADER.unpack(header)
        if start == 0 and header.startswith(GZIP_MAGIC) and stored != _masked_crc(header[:8]):
            raise UserError(f"{path}: compressed by gzip; decompress it (gunzip), because images are read at their offsets")
        _check(f"{where}: the length's", stored, header[:8])
        if not 0 <= length <= LONGEST_RECORD_BYTES:
            raise UserError(f"{where}: length must be in [0, {LONGEST_RECORD_BYTES}], got {length}; {AGAIN}")
        if length + CHECKSUM.size > (left := size - start - HEADER.size):
            raise UserError(f"{where}: truncated, {left} of {length + CHECKSUM.size} bytes; {AGAIN}")
        payload, checksum = shard.read(length), shard.read(CHECKSUM.size)
        if len(checksum) < CHECKSUM.size:
            raise UserError(f"{where}: the file of {size} bytes was truncated while reading; {AGAIN}")
        _check(f"{where}: the content's", CHECKSUM.unpack(checksum)[0], payload)
        yield where, start, payload
        start += HEADER.size + length + CHECKSUM.size
        index += 1


def _masked_crc(content: bytes) -> int:
    """CRC32C as TFRecord stores it: rotated right by 15 bits, plus a constant, modulo 2**32."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _check(what: str, stored: int, content: bytes) -> None:
    """Raises `UserError` unless `content` has the stored masked CRC32C."""
    if (computed := _masked_crc(content)) != stored:
        raise UserError(f"{what} CRC32C is {computed:#010x}, but {stored:#010x} is stored; {AGAIN}")


def _features(payload: bytes, where: str) -> Any:
    """The features of a serialized tf.train.Example by name."""
    try:
        return EXAMPLE.FromString(payload).features.feature
    except (message.DecodeError, UnicodeDecodeError) as error:  # the latter from protobuf without its C library
        raise UserError(f"{where}: not a tf.train.Example ({len(payload)} bytes); {AGAIN}") from error


def _kind(features: Any, name: str) -> str | None:
    """The type of feature `name`; None, as in TensorFlow, for one that is absent or without a kind."""
    return features[name].WhichOneof("kind") if name in features else None  # features[name] would add a missing one


def _label(features: Any, name: str, where: str) -> int | str | None:
    """The class number or the class name in feature `name`; None for an unlabelled record."""
    kind, feature, remedy = _kind(features, name), f"{where}: feature {name!r}", "set data.features.label"
    values = getattr(features[name], kind).value if kind else []
    if len(values) == 0 or (len(values) == 1 and values[0] in (-1, b"")):
        return None
    if len(values) == 1 and kind != "float_list":
        label = _text(values[0], feature, remedy) if kind == "bytes_list" else int(values[0])
        if isinstance(label, int) and label < 0:
            raise UserError(f"{feature} must be >= 0, or -1 for no label, got {label}; {remedy}")
        return label
    if kind == "bytes_list" or sorted(values)[-2:] != [0, 1] or sorted(values)[0] != 0:
        got = f"{len(values)} values" if len(values) > 1 else values[0]
        raise UserError(f"{feature} must be an integer, a class name or one-hot, got {got} ({TYPES[kind]}); {remedy}")
    return list(values).index(1)


def _text(value: bytes, feature: str, remedy: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{feature} must be UTF-8, got {value[:32]!r}; {remedy}") from error


def _value(features: Any, role: str, name: str, where: str) -> Any:
    """The single value of feature `name`, decoded from UTF-8 for an id."""
    feature, remedy = f"{where}: feature {name!r}", f"set data.features.{role}"
    kind = _kind(features, name)
    if kind is None:
        there = [f"{key!r} ({TYPES[features[key].WhichOneof('kind')]})" for key in sorted(features)]
        more = f" and {len(there) - LISTED_FEATURES} more" if len(there) > LISTED_FEATURES else ""
        raise UserError(f"{feature} is missing, got {', '.join(there[:LISTED_FEATURES]) or 'none'}{more}; {remedy}")
    if kind not in KINDS[role]:
        wanted = " or ".join(TYPES[choice] for choice in KINDS[role])
        raise UserError(f"{feature} must be {wanted}, got {TYPES[kind]}; {remedy}")
    values = getattr(features[name], kind).value
    if len(values) != 1 or values[0] == b"":
        got = "an empty one" if len(values) == 1 else len(values)
        raise UserError(f"{feature} must have 1 value, got {got}; {remedy}")
    return _text(values[0], feature, remedy) if role == "id" and kind == "bytes_list" else values[0]
