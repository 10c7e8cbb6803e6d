"""What a path inside a data set means: which split and class an image belongs to, and what is none of its files."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from fieldguide.core.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
SHARD = re.compile(r".*\.tfrec(ord)?s?|.*\.tfrecord.*|.*-\d{5}-of-\d{5}", re.IGNORECASE)
SHARD_SPLIT = re.compile(r"([a-z]+)[^a-z].*", re.IGNORECASE)  # train-00000-of-00010
RESOLUTION = re.compile(r"tfrecords-jpeg-(\d+)x\d+")  # the folders of the flower competition


def is_image(name: str) -> bool:
    """Whether a member is an image by its suffix; hidden files and what macOS leaves in archives are not."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path)


def is_shard(name: str) -> bool:
    """Whether a member is a TFRecord shard by its name."""
    path = PurePosixPath(name)
    return SHARD.fullmatch(path.name) is not None and not is_hidden(path)


def resolution_of(name: str) -> int | None:
    """The side in pixels that a shard's folder states (`tfrecords-jpeg-192x192/…`: 192), else None."""
    match = RESOLUTION.search(name)
    return int(match[1]) if match else None


def is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def wrapper_of(names: Iterable[str]) -> PurePosixPath:
    """The folder to strip: what all names inside folders share, up to the first that is a split's name.

    Loose files beside a wrapping folder do not count.
    """
    parents = [parts for name in names if (parts := PurePosixPath(name).parts[:-1])]
    depth = 0
    while parents and all(len(parts) > depth for parts in parents):
        shared = {parts[depth] for parts in parents}
        if len(shared) > 1 or shared.pop().casefold() in SPLIT_NAMES:
            break
        depth += 1
    return PurePosixPath(*parents[0][:depth]) if parents else PurePosixPath()


def split_and_class(name: str) -> tuple[str, str] | None:
    """`("valid", "MONARCH")` for `val/MONARCH/7.jpg`; None for a name outside `<split>/<class>/`."""
    parts = PurePosixPath(name).parts
    if len(parts) < 3 or parts[0].casefold() not in SPLIT_NAMES:
        return None
    return SPLIT_NAMES[parts[0].casefold()], parts[1]


def class_alone(name: str) -> tuple[str, str] | None:
    """`("", "MONARCH")` for `MONARCH/7.jpg`, in a folder that holds classes and no splits; None for a loose image."""
    parts = PurePosixPath(name).parts
    return ("", parts[0]) if len(parts) > 1 else None


def class_name(folder: str) -> str:
    """A class folder's name without surrounding space, in composed Unicode (macOS writes decomposed names)."""
    return unicodedata.normalize("NFC", folder).strip()


def class_key(folder: str) -> str:
    """What is equal for the folders of one class."""
    return class_name(folder).casefold()


def shard_split(name: str) -> str | None:
    """`train` for `train/00-192x192-798.tfrec` and for `train-00000-of-00010`; None where neither tells a split."""
    path = PurePosixPath(name)
    match = SHARD_SPLIT.fullmatch(path.name)
    for part in (*path.parts[:-1], *([match[1]] if match else [])):
        if part.casefold() in SPLIT_NAMES:
            return SPLIT_NAMES[part.casefold()]
    return None


def check_splits(present: Iterable[str], needed: Iterable[str], where: str) -> None:
    """Raises `UserError` for the first split that is needed and not there; "" stands for class folders without splits."""
    for split in needed:
        if split not in present:
            missing = f"{split} split" if split else "class folder with images"
            raise UserError(f"{where}: no {missing}; arrange the photographs as train/<CLASS>/, valid/<CLASS>/, test/<CLASS>/")


def check_classes(places: Iterable[tuple[str, str]], where: str) -> None:
    """Raises `UserError` for (split, class folder) that cannot be meant: nameless, a split's name, one class alone."""
    places = set(places)
    for split, folder in sorted(places):
        if not class_name(folder):
            raise UserError(f"{where}: class folder {folder!r} has no name; rename it")
        if not split and folder.casefold() in SPLIT_NAMES:
            raise UserError(f"{where}: {folder} holds images and no class folders; put them into {folder}/<CLASS>/")
    keys = {class_key(folder) for _, folder in places}
    if len(keys) < 2:
        raise UserError(f"{where}: one class alone ({', '.join(sorted(keys))}); a classifier needs two or more class folders")


def check_class_folders(names: Iterable[str], folders: Iterable[str], where: str, depth: int) -> None:
    """Raises `UserError` for a class folder (its path has `depth` parts) that holds no image."""
    filled = {PurePosixPath(*PurePosixPath(name).parts[:depth]) for name in names}
    for folder in sorted(folders):
        path = PurePosixPath(folder)
        is_class = len(path.parts) == depth and (depth == 1 or path.parts[0].casefold() in SPLIT_NAMES)
        if is_class and not is_hidden(path) and path not in filled:
            raise UserError(f"{where}: class folder {folder} holds no image; add images or remove the folder")
