"""Meaning of the paths in a data set: split and class of an image, and files to ignore."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath
from typing import NamedTuple

from fieldguide.core.errors import UserError
from fieldguide.core.names import ClassFrom

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
DECORATIONS = frozenset(  # words around a split's name that say nothing about a species
    "set sets data dataset datasets image images img imgs photo photos photograph photographs picture pictures pic pics split"
    " splits folder folders dir file files final all original raw resized cropped jpg jpeg png labelled labeled".split()
)
UNLABELLED = frozenset({"unlabelled", "unlabeled"})
UNKNOWN = UNLABELLED | {"unknown", "unclassified"}  # below test, if train has no such class
WORD = re.compile(r"[^\W\d_]+")
SYSTEM_NAMES = frozenset(  # in lower case: of macOS, Synology, QNAP, Windows and Linux
    {
        *("__macosx", "icon\r", "network trash folder", "temporary items"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
        *("$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),
        "lost+found",
    }
)
OLD_BINS = frozenset({"RECYCLER", "RECYCLED"})  # of old Windows, in capitals; `Recycled` is a class of waste
SYSTEM_SUFFIXES = ("@synoeastream", "@synoresource")
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
SHARD = re.compile(r".*\.tfrec(ord)?s?|.*\.tfrecord.*|.*-\d{5}-of-\d{5}", re.IGNORECASE)
SHARD_SPLIT_NAMES = SPLIT_NAMES | {"dev": "valid", "eval": "valid"}  # in the names of files
RESOLUTION = re.compile(r"tfrecords-jpeg-(\d+)x\d+")  # the folders of the flower competition
ARRANGE = "arrange the photographs as train/<CLASS>/, valid/<CLASS>/, test/<CLASS>/"
BESIDE = "beside the wrapping folder"  # reasons why an image is left out
OUTSIDE_CLASSES = "outside class folders"
OUTSIDE_SPLITS = "outside the splits"
OF_ANNOTATIONS = frozenset("mask masks label labels annotation annotations".split())  # folders beside `images`
Parts = tuple[str, ...]


class Place(NamedTuple):
    """Where an image lies: its split ("" if there are none) and the class folders, outermost first (none if unlabelled)."""

    split: str
    folders: Parts


@dataclass
class Layout:
    """The places of all images that have one, and why the others have none."""

    root: Parts
    has_splits: bool
    places: dict[str, Place] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)  # reasons
    class_folders: set[Place] = field(default_factory=set)  # with images or not


def is_shard(name: str) -> bool:
    """Whether a member has the name of a TFRecord shard."""
    path = PurePosixPath(name)
    return SHARD.fullmatch(path.name) is not None and not is_system(name)


def is_table(name: str) -> bool:
    """Whether a file has the name of a table that is read."""
    return name.casefold().endswith(TABLE_SUFFIXES)


def resolution_of(name: str) -> int | None:
    """The side in pixels in the name of a shard's folder (`tfrecords-jpeg-192x192/…`: 192), or None."""
    match = RESOLUTION.search(name)
    return int(match[1]) if match else None


def is_system(name: str) -> bool:
    """Whether a path is hidden or leads through what a system leaves in folders: never a photograph or a class."""
    return any(
        part.startswith(".") or part in OLD_BINS or (key := part.casefold()) in SYSTEM_NAMES or key.endswith(SYSTEM_SUFFIXES)
        for part in PurePosixPath(name).parts
    )


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


@cache
def split_in(folder: str) -> tuple[str, Parts] | None:
    """`("train", ("seg",))` for `seg_train`: the split that a folder's name has among its words, and the other words.

    None for a name without a split or with two.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder)  # TrainImages
    words = [part for word in WORD.findall(spaced) for part in _split_and_decoration(word.casefold())]
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return (splits.pop(), tuple(word for word in words if word not in SPLIT_NAMES)) if len(splits) == 1 else None


def _split_and_decoration(word: str) -> list[str]:
    """`trainset` as `train`, `set`."""
    for name in SPLIT_NAMES:
        if word.startswith(name) and word[len(name) :] in DECORATIONS:
            return [name, word[len(name) :]]
    return [word]


def is_split(folder: str) -> bool:
    """Whether a folder's name is that of a split, alone or decorated: `train`, `Training Set`, `1_train`, `val-images`."""
    found = split_in(folder)
    return found is not None and DECORATIONS.issuperset(found[1])


def splits_among(folders: Iterable[str]) -> dict[str, str]:
    """The split of each split folder among folders that lie side by side.

    Those are the ones that `is_split` accepts, and a train folder with its siblings whose names differ from it in the split
    alone (`seg_train`, `seg_test`), so that species such as `train oil beetle` and `test tube coral` stay classes.
    """
    found = {folder: own for folder in folders if (own := split_in(folder))}
    by_rest = defaultdict(set)
    for split, rest in found.values():
        by_rest[rest].add(split)
    pairs = {rest for rest, splits in by_rest.items() if len(splits) > 1 and "train" in splits}
    return {folder: split for folder, (split, rest) in found.items() if is_split(folder) or rest in pairs}


def is_unlabelled(folder: str, names: frozenset[str] = UNLABELLED) -> bool:
    """Whether a folder's name, without decoration, is one of `names`."""
    words = set(WORD.findall(folder.casefold())) - DECORATIONS
    return len(words) == 1 and words <= names


def read_layout(names: Iterable[str], folders: Iterable[str], where: str) -> Layout:
    """Splits and class folders of all images: `[<split>/]<class folders>/<image>` below any wrapping folders.

    Raises `UserError` for split folders in class folders or in other splits, and for images without class folders in train or
    valid.
    """
    paths = {name: PurePosixPath(name).parts for name in names}
    root = _root(list(paths.values()), where)
    inner = {name: parts[len(root) :] for name, parts in paths.items() if parts[: len(root)] == root}
    top = {parts[0] for parts in inner.values() if len(parts) > 1}
    splits = splits_among(top)
    loose_only = {kid for kid in splits if all(len(parts) == 2 for parts in inner.values() if parts[0] == kid)}
    if splits and "train" not in splits.values() and loose_only == set(splits) and set(splits.values()) == {"test"}:
        splits = {}  # class folders without splits, beside a folder of photographs to classify
    else:
        loose_only = set()
    layout = Layout(root, bool(splits))
    loose: dict[str, list[str]] = defaultdict(list)
    for name in paths:
        if name not in inner:
            layout.outside[name] = BESIDE
        elif len(inner[name]) == 1:
            layout.outside[name] = OUTSIDE_CLASSES
        elif inner[name][0] in loose_only or is_unlabelled(inner[name][0]):
            layout.places[name] = Place("unlabelled", ())
        elif (place := _place(inner[name][:-1], splits, where)) is None:
            layout.outside[name] = OUTSIDE_SPLITS
        elif not place.folders:
            loose[place.split].append(name)
        else:
            layout.places[name] = place
    _place_loose(layout, loose, where)
    _set_unknown_apart(layout, where)
    _check_class_folders(layout, where)
    for folder in sorted(folders):
        own = PurePosixPath(folder).parts
        if (
            own[: len(root)] == root
            and len(own) > len(root)
            and not is_unlabelled(own[len(root)])
            and own[len(root)] not in loose_only
        ):
            place = _place(own[len(root) :], splits, where)
            if place and place.folders:
                layout.class_folders.add(place)
    return layout


def _root(paths: list[Parts], where: str) -> Parts:
    """The folder in which split or class folders lie: looks through folders that are alone, and through one that has splits."""
    root: Parts = ()
    while True:
        below = [parts[len(root) :] for parts in paths if parts[: len(root)] == root]
        inside: dict[str, set[str]] = defaultdict(set)
        for parts in below:
            if len(parts) > 1:
                inside[parts[0]].update(parts[1:2] if len(parts) > 2 else ())
        if splits_among(inside):
            return root
        with_train = [folder for folder, inner in sorted(inside.items()) if "train" in splits_among(inner).values()]
        if len(with_train) > 1:
            some = " and ".join("/".join((*root, folder)) for folder in with_train[:2])
            raise UserError(
                f"{where}: {some} each contain a train folder; set data.path to one of them, or, if they are classes, {ARRANGE}"
            )
        if len(inside) == 1 and any(inside.values()):
            with_train = list(inside)
        if not with_train:
            return root
        root = (*root, with_train[0])


def _place(folders: Parts, splits: Mapping[str, str], where: str) -> Place | None:
    """The place of an image in these folders below the root; None outside the splits."""
    if not splits:
        return Place("", folders)
    if (split := splits.get(folders[0])) is None:
        return None
    own, rest = split_in(folders[0]), folders[1:]
    while rest and (inner := split_in(rest[0])) and (inner == own or is_split(rest[0])):  # train/train, seg_train/seg_train
        if inner[0] != split:
            raise UserError(f"{where}: {'/'.join(folders[:2])} is a split in another split; move it beside {folders[0]}")
        rest = rest[1:]
    return Place(split, rest)


def _place_loose(layout: Layout, loose: Mapping[str, list[str]], where: str) -> None:
    """Images of test without class folders are unlabelled if none of test has one; elsewhere they are left out."""
    for split, names in loose.items():
        folders = {name: str(PurePosixPath(name).parent) for name in names}
        placed = [name for name, place in layout.places.items() if place.split == split]
        for folder in sorted(set(folders.values())):
            depth = len(PurePosixPath(folder).parts) - len(layout.root)
            if depth > 1 and any(not name.startswith(f"{folder}/") for name in placed):  # train/train beside train/bus
                raise UserError(f"{where}: {folder} has the name of a split, but lies where classes are; {ARRANGE}")
        if placed:
            layout.outside |= dict.fromkeys(names, OUTSIDE_CLASSES)
        elif split == "test":
            layout.places |= dict.fromkeys(names, Place("unlabelled", ()))
        else:
            folder = folders[names[0]]
            raise UserError(f"{where}: {folder} contains images without class folders; move them to {folder}/<CLASS>/")


def _set_unknown_apart(layout: Layout, where: str) -> None:
    """Images of test in a folder such as `unknown` or `images` are unlabelled, if train has no such class folder.

    Raises `UserError` for images of valid in a folder such as `images` that train lacks.
    """
    of_train = {place.folders for place in layout.places.values() if place.split == "train" and place.folders}
    known = {class_key(folder) for folders in of_train for folder in folders}
    outermost = {class_key(folders[0]) for folders in of_train}  # `images` in train/<CLASS>/images is no class
    for name, (split, folders) in layout.places.items():
        if split in ("valid", "test") and len(folders) == 1 and (key := class_key(folders[0])) not in outermost:
            says_nothing = _has_only(key, DECORATIONS)
            if split == "test" and (says_nothing or (key not in known and is_unlabelled(key, UNKNOWN))):
                layout.places[name] = Place("unlabelled", ())
            elif split == "valid" and says_nothing and of_train:
                folder = PurePosixPath(name).parent
                raise UserError(
                    f"{where}: {folder} contains images without class folders; move them to {folder.parent}/<CLASS>/"
                )


def _has_only(folder: str, words: frozenset[str]) -> bool:
    """Whether a folder's name consists of some of `words`."""
    own = set(WORD.findall(folder.casefold()))
    return bool(own) and own <= words


def _check_class_folders(layout: Layout, where: str) -> None:
    """Raises `UserError` for a class folder without a name or with the name of a split."""
    for split, folders in sorted(set(layout.places.values())):
        for number, folder in enumerate(folders, 1):
            path = "/".join((*layout.root, *([split] if split else []), *folders[:number]))
            if not class_name(folder):
                raise UserError(f"{where}: class folder {folder!r} has no name; rename it")
            if is_split(folder):
                if not split and number == 1:
                    raise UserError(f"{where}: {path} contains images without class folders; move them to {path}/<CLASS>/")
                raise UserError(f"{where}: {path} has the name of a split, but lies where classes are; {ARRANGE}")


def class_names(layout: Layout, class_from: ClassFrom, where: str) -> dict[str, str]:
    """The class of each image: its first or last class folder, or the names of all, joined by spaces; "" if unlabelled.

    Raises `UserError` if `class_from` is last and class folders lie at different depths or in two folders, because then it
    is not known which folders are the classes.
    """
    places = {place: _class_of(place.folders, class_from) for place in sorted(set(layout.places.values()))}
    paths: dict[str, dict[Parts, Parts]] = defaultdict(dict)
    for (_, folders), name in places.items():
        if folders:
            paths[class_key(name)].setdefault(tuple(class_key(folder) for folder in folders), folders)
    if class_from == "last":
        _check_depths(layout, where)
    if class_from != "first":
        for same in paths.values():
            if len(same) > 1:
                one, other = ("/".join(folders) for folders in list(same.values())[:2])
                remedy = "rename one"
                if class_from == "last":
                    remedy = "set data.class_from to path, or to first, or remove one if it has copies of the other"
                raise UserError(f"{where}: {one} and {other} would be one class; {remedy}")
    return {name: places[place] for name, place in layout.places.items()}


def _check_depths(layout: Layout, where: str) -> None:
    examples: dict[int, str] = {}
    for name, place in layout.places.items():
        if place.folders:
            examples.setdefault(len(place.folders), name)
    if len(examples) > 1:
        shallow, deep = (examples[depth] for depth in sorted(examples)[:2])
        raise UserError(
            f"{where}: images lie at different depths ({shallow}, {deep}), so the last folder may not be the class;"
            " set data.class_from to first (subfolders belong to their class) or path (they are classes)"
        )


def _class_of(folders: Parts, class_from: ClassFrom) -> str:
    if not folders:
        return ""
    return {"first": folders[0], "last": folders[-1], "path": " ".join(map(class_name, folders))}[class_from]


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
            raise UserError(f"{where}: no {f'{split} split' if split else 'class folder with images'}; {ARRANGE}")


def check_classes(names: Iterable[str], where: str) -> None:
    """Raises `UserError` for a single class, and if no folder has the name of a class (`images` and `masks`)."""
    classes = {class_key(name): class_name(name) for name in names if name}
    if len(classes) > 1 and all(_has_only(name, DECORATIONS | OF_ANNOTATIONS) for name in classes):
        raise UserError(f"{where}: {' and '.join(sorted(classes.values())[:2])} are not names of classes; {ARRANGE}")
    if len(classes) == 1:
        raise UserError(
            f"{where}: only one class: {next(iter(classes.values()))}; a classifier needs at least two class folders"
        )


def check_empty_folders(layout: Layout, where: str, left_out: str) -> None:
    """Raises `UserError` for a class folder without images; `left_out` names the files that are not read, if any."""
    depth = max((len(place.folders) for place in layout.places.values()), default=1)
    filled = {(split, folders[:n]) for split, folders in set(layout.places.values()) for n in range(len(folders) + 1)}
    for split, folders in sorted(layout.class_folders):
        if len(folders) <= depth and (split, folders) not in filled:
            path = "/".join((*layout.root, *([split] if split else []), *folders))
            note = f" that is read ({left_out} left out)" if left_out else ""
            raise UserError(f"{where}: class folder {path} contains no image{note}; add images or remove the folder")
