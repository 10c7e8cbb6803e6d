"""Class names of TFRecords: a text file, one a line, as TensorFlow Datasets (`daisy`) and TF-Slim (`0:daisy`) write it."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from fieldguide.core.errors import UserError
from fieldguide.sources.layout import class_key, class_name, is_system
from fieldguide.sources.members import is_writable

NUMBERED = re.compile(r"(\d{1,9}):(.*)")
SUFFIX = "labels.txt"  # labels.txt of TF-Slim, label.labels.txt of TensorFlow Datasets
LARGEST_BYTES = 16 << 20  # a guess: more than any list of classes


def is_class_names(name: str) -> bool:
    """Whether a member has the name of a list of class names."""
    path = PurePosixPath(name)
    return (path.name.casefold() == SUFFIX or path.name.casefold().endswith(f".{SUFFIX}")) and not is_system(name)


def is_class_name(name: str) -> bool:
    """Whether a name is not empty and can be written to a table."""
    return bool(name) and is_writable(name)


def read_class_names(path: Path) -> list[str]:
    """The class names in the file of `data.class_names`, by label; raises `UserError`."""
    try:
        with path.open("rb") as stream:
            return parse_class_names(stream.read(LARGEST_BYTES + 1), str(path))
    except OSError as error:
        raise UserError(f"data.class_names: {path} cannot be read ({error.strerror}); give a text file of names") from error


def find_class_names(files: Sequence[str], read: Callable[[str], bytes], feature: str, where: str) -> list[str]:
    """The class names in `files` of a data set, by label; empty without files.

    Of several files the one of the label's `feature` counts (`label.labels.txt`), and else they must be equal. Raises
    `UserError`.
    """
    own = [name for name in files if PurePosixPath(name).name == f"{feature}.{SUFFIX}"]
    lists = {name: parse_class_names(read(name), f"{where}/{name}") for name in own or files}
    if any(names != next(iter(lists.values())) for names in lists.values()):
        raise UserError(f"{where}: several lists of class names ({', '.join(lists)}); set data.class_names to the right one")
    return next(iter(lists.values()), [])


def parse_class_names(content: bytes, where: str) -> list[str]:
    """The class names in the content of a file, by label; raises `UserError` for a name that is empty or repeated."""
    if len(content) > LARGEST_BYTES:
        raise UserError(f"{where}: more than {LARGEST_BYTES >> 20} MiB, so not a list of class names; set data.class_names")
    try:
        lines = content.decode("utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    if lines == [""]:
        raise UserError(f"{where}: no class name; write one per line")
    names = [class_name(line) for line in lines]
    numbered = [NUMBERED.fullmatch(name) for name in names]
    if all(numbered):
        by_number = {int(match[1]): class_name(match[2]) for match in numbered if match}
        if sorted(by_number) != list(range(len(lines))):
            missing = next(number for number in range(len(lines)) if number not in by_number)
            raise UserError(f"{where}: {len(lines)} numbered names, but none for class {missing}; number them from 0 on")
        names = [by_number[number] for number in range(len(lines))]
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        if not is_class_name(name):
            raise UserError(f"{where}: the name of class {number} is {name!r}; write a name without control characters")
        if (first := seen.setdefault(class_key(name), number)) != number:
            raise UserError(f"{where}: {name!r} is the name of the classes {first} and {number}; rename one")
    return names
