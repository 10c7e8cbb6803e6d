"""What a path inside a data set means: which split and class an image belongs to, and what is no image at all."""

from collections.abc import Iterable
from pathlib import PurePosixPath

from fieldguide.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}


def is_image(name: str) -> bool:
    """Whether a member is an image by its suffix; hidden files and what macOS leaves in archives are not."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def without_wrapper(names: Iterable[str]) -> int:
    """How many leading folders to strip: those that all names share, up to the first that is a split's name."""
    parents = [PurePosixPath(name).parts[:-1] for name in names]
    depth = 0
    while parents and all(len(parts) > depth for parts in parents):
        shared = {parts[depth] for parts in parents}
        if len(shared) > 1 or shared.pop().casefold() in SPLIT_NAMES:
            break
        depth += 1
    return depth


def split_and_class(name: str) -> tuple[str, str] | None:
    """`("valid", "MONARCH")` for `val/MONARCH/7.jpg`; None for a name outside `<split>/<class>/`."""
    parts = PurePosixPath(name).parts
    if len(parts) < 3 or parts[0].casefold() not in SPLIT_NAMES:
        return None
    return SPLIT_NAMES[parts[0].casefold()], parts[1].strip()


def check_folders(names: Iterable[str], folders: Iterable[str], where: str) -> None:
    """Raises `UserError` unless images lie in `train` and `valid` and every class folder holds one."""
    filled = {PurePosixPath(*PurePosixPath(name).parts[:2]) for name in names}
    present = {SPLIT_NAMES.get(folder.parts[0].casefold()) for folder in filled}
    for split in ("train", "valid", "test"):
        if split not in present:
            raise UserError(f"{where}: no {split}/<CLASS>/ with images in it; arrange the photographs as train, valid, test")
    for folder in sorted(folders):
        parts = PurePosixPath(folder).parts
        if len(parts) == 2 and parts[0].casefold() in SPLIT_NAMES and PurePosixPath(folder) not in filled:
            raise UserError(f"{where}: class folder {folder} holds no image; add images or remove the folder")
