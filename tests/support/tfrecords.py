"""TFRecord shards, written byte by byte from the format's specification."""

import struct
from pathlib import Path

JPEG = b"\xff\xd8 stands for an image \xff\xd9"


def crc32c(content: bytes) -> int:
    """Castagnoli's CRC bit by bit: reflected polynomial 0x82F63B78 (RFC 3720)."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(content: bytes) -> bytes:
    crc = crc32c(content)
    rotated = (crc >> 15) + (crc % 2**15) * 2**17
    return struct.pack("<I", (rotated + 0xA282EAD8) % 2**32)


def header(length: int) -> bytes:
    size = struct.pack("<Q", length % 2**64)
    return size + masked(size)


def record(payload: bytes) -> bytes:
    return header(len(payload)) + payload + masked(payload)


def varint(number: int) -> bytes:
    number %= 2**64  # negative numbers are two's complement
    parts = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes(part | 0x80 for part in parts[:-1]) + bytes(parts[-1:])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def texts(*values: bytes) -> bytes:
    return field(1, b"".join(field(1, value) for value in values))


def floats(*values: float) -> bytes:
    return field(2, field(1, struct.pack(f"<{len(values)}f", *values)))


def ints(*values: int, packed: bool = True) -> bytes:
    if packed:
        return field(3, field(1, b"".join(map(varint, values))))
    return field(3, b"".join(varint(1 << 3) + varint(value) for value in values))


def example(*features: tuple[str, bytes]) -> bytes:
    return field(1, b"".join(field(1, field(1, key.encode()) + field(2, value)) for key, value in features))


def flower(image: bytes = JPEG, label: int = 7, name: bytes = b"a1") -> bytes:
    return example(("image", texts(image)), ("class", ints(label)), ("id", texts(name)))


def write(folder: Path, *payloads: bytes, name: str = "shard.tfrec") -> Path:
    path = folder / name
    path.write_bytes(b"".join(map(record, payloads)))
    return path
