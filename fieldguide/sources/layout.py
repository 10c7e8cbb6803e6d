"""Meaning of the paths in a data set: split and class of an image, and files to ignore."""

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
SHARD_SPLIT_NAMES = SPLIT_NAMES | {"dev": "valid", "eval": "valid"}  # in the names of files
RESOLUTION = re.compile(r"tfrecords-jpeg-(\d+)x\d+")  # the folders of the flower competition


def is_image(name: str) -> bool:
    """Whether a member has an image suffix and is not hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path)


def is_shard(name: str) -> bool:
    """Whether a member has the name of a TFRecord shard."""
    path = PurePosixPath(name)
    return SHARD.fullmatch(path.name) is not None and not is_hidden(path)


def resolution_of(name: str) -> int | None:
    """The side in pixels in the name of a shard's folder (`tfrecords-jpeg-192x192/…`: 192), or None."""
    match = RESOLUTION.search(name)
    return int(match[1]) if match else None


def is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def wrapper_of(names: Iterable[str]) -> PurePosixPath:
    """The wrapping folder: the common parent of all names in folders, above any folder named after a split."""
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
    """`("", "MONARCH")` for `MONARCH/7.jpg`, in a folder of classes without splits; None for an image outside classes."""
    parts = PurePosixPath(name).parts
    return ("", parts[0]) if len(parts) > 1 else None


def class_name(folder: str) -> str:
    """The stripped name of a class folder in composed Unicode (macOS writes decomposed names)."""
    return unicodedata.normalize("NFC", folder).strip()


def class_key(folder: str) -> str:
    """A key that is equal for the folders of one class."""
    return class_name(folder).casefold()


def shard_split(name: str) -> str | None:
    """The split in a shard's path: the first folder that is named after one, else a word of the file's name.

    The names are those of Kaggle (`train/00-192x192-798.tfrec`, `ld_test00-507.tfrec`), TensorFlow Datasets
    (`oxford_flowers-train.tfrecord-00000-of-00001`) and TF-Slim (`flowers_train_00000-of-00005.tfrecord`). None for a path
    without a split and for a file with several in its name.
    """
    path = PurePosixPath(name)
    for folder in path.parts[:-1]:
        if folder.casefold() in SPLIT_NAMES:
            return SPLIT_NAMES[folder.casefold()]
    words = re.findall("[a-z]+", path.name.casefold())
    splits = {SHARD_SPLIT_NAMES[word] for word in words if word in SHARD_SPLIT_NAMES}
    return splits.pop() if len(splits) == 1 else None


def check_splits(present: Iterable[str], needed: Iterable[str], where: str) -> None:
    """Raises `UserError` for the first missing split; "" stands for class folders without splits."""
    for split in needed:
        if split not in present:
            missing = f"{split} split" if split else "class folder with images"
            raise UserError(f"{where}: no {missing}; arrange the photographs as train/<CLASS>/, valid/<CLASS>/, test/<CLASS>/")


def check_classes(places: Iterable[tuple[str, str]], where: str) -> None:
    """Raises `UserError` for a class folder without a name or with the name of a split, and for a single class."""
    places = set(places)
    for split, folder in sorted(places):
        if not class_name(folder):
            raise UserError(f"{where}: class folder {folder!r} has no name; rename it")
        if not split and folder.casefold() in SPLIT_NAMES:
            raise UserError(f"{where}: {folder} contains images without class folders; move them to {folder}/<CLASS>/")
    keys = {class_key(folder) for _, folder in places}
    if len(keys) < 2:
        raise UserError(f"{where}: only one class ({', '.join(sorted(keys))}); a classifier needs at least two class folders")


def check_class_folders(names: Iterable[str], folders: Iterable[str], where: str, depth: int) -> None:
    """Raises `UserError` for a class folder (its path has `depth` parts) without images."""
    filled = {PurePosixPath(*PurePosixPath(name).parts[:depth]) for name in names}
    for folder in sorted(folders):
        path = PurePosixPath(folder)
        is_class = len(path.parts) == depth and (depth == 1 or path.parts[0].casefold() in SPLIT_NAMES)
        if is_class and not is_hidden(path) and path not in filled:
            raise UserError(f"{where}: class folder {folder} contains no image; add images or remove the folder")
