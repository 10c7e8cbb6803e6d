"""data/raw: photographs as one uncompressed images.zip or TFRecord shards as they are, and a receipt of where they are from."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from fieldguide.core.artifacts import RawFile, Receipt
from fieldguide.core.errors import UserError
from fieldguide.core.files import check_free_space, file_hash, read_json, write_bytes
from fieldguide.core.names import SPLITS
from fieldguide.core.params import Data, Runtime
from fieldguide.core.paths import IMAGES_ZIP, RAW, RECEIPT, download_cache, project_root
from fieldguide.sources import kaggle, sample
from fieldguide.sources.archive import Archive, open_archive, pack
from fieldguide.sources.catalog import CATALOG, matching_release
from fieldguide.sources.layout import (
    check_class_folders,
    check_classes,
    check_splits,
    class_alone,
    is_hidden,
    is_image,
    is_shard,
    resolution_of,
    shard_split,
    split_and_class,
)
from fieldguide.sources.tfrecord import count_in_name

IN_PROGRESS = RAW / ".begun"  # is there while the stage writes: all files beside it are the stage's own


class Origin(NamedTuple):
    """Where raw data lie before they are copied."""

    path: Path  # a zip, a folder or one shard
    source: str
    version: str
    files: frozenset[str]  # the only ones wanted; none: all


class Brought(NamedTuple):
    """What was written to data/raw."""

    paths: list[Path]
    ignored: dict[str, int]  # files of the source, by the reason
    counts: Counter[str]  # images by split


def bring_raw_data(data: Data, runtime: Runtime) -> Receipt:
    """Replaces the content of data/raw by the data that `data` names, and returns their receipt, which is written too."""
    try:
        RAW.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{RAW}: could not be created ({error.strerror}); remove what is in its place or fix the permissions"
        ) from error
    refuse_foreign_files()
    receipt = download(data, runtime)
    remove_old_files(RAW / name for name in receipt.files)
    receipt.write(RECEIPT)
    IN_PROGRESS.unlink()
    return receipt


def refuse_foreign_files() -> None:
    """Raises `UserError` where something lies in data/raw that this stage did not bring, as it replaces all of it.

    Hidden files are a system's own (`.DS_Store`), not a user's.
    """
    if IN_PROGRESS.exists():
        return
    own = {RECEIPT}
    with suppress(UserError):  # none yet, or damaged; one of another version counts, so it is not read as a `Receipt`
        own |= {RAW / name for name in read_json(RECEIPT).get("files", {})}
    there = (path for path in RAW.rglob("*") if not path.is_dir() and not is_hidden(PurePosixPath(path.relative_to(RAW))))
    foreign = sorted(set(there) - own)
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if foreign[1:] else ""
        raise UserError(
            f"{foreign[0]}{more} was not brought by this stage, which replaces all of {RAW}; move it out of there and give its"
            " new place: -S data.path=/photos"
        )


def pack_images(members: Iterable[tuple[str, bytes]], n_images: int) -> None:
    """Writes images.zip: whole, or after an error not at all."""
    IN_PROGRESS.touch()
    try:
        pack(tqdm(members, total=n_images, unit="image", disable=None), IMAGES_ZIP)
    except UserError:
        IN_PROGRESS.unlink()
        raise


def remove_old_files(new: Iterable[Path]) -> None:
    """What lies in data/raw beside `new`, and folders that are empty then."""
    kept = {IN_PROGRESS, *new}
    for path in sorted(RAW.rglob("*"), reverse=True):  # a folder after what is in it
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
        elif path not in kept:
            path.unlink()


def download(data: Data, runtime: Runtime) -> Receipt:
    """Writes the data that `data` names to data/raw, beside what is there, and returns their receipt."""
    if data.dataset == "sample" and not data.path:
        return make_receipt(data, "fieldguide/sources/sample.py", "", pack_sample(data, runtime))
    origin = locate(data)
    folders = CATALOG[data.dataset].layout == "folders"
    keep = is_image if folders else _wanted_shard(data, origin.files)
    with open_archive(origin.path, int(data.max_gigabytes * 1e9), keep) as archive:
        check_free_space(RAW, archive.n_bytes)
        brought = (pack_folders if folders else copy_shards)(archive, data)
    return make_receipt(data, origin.source, origin.version, brought)


def locate(data: Data) -> Origin:
    """The zip or folder that the user gives, or the download; raises `UserError` where `data` names none."""
    dataset = CATALOG[data.dataset]
    if data.version and (data.path or not dataset.kaggle_dataset):
        raise UserError(f"params.yaml: data.version is {data.version}, but only a download from Kaggle's data sets has one")
    if data.path:
        path = project_root() / os.path.expanduser(data.path)
        inside = path.resolve().is_relative_to(RAW.resolve())
        around = CATALOG[data.dataset].layout != "folders" and RAW.resolve().is_relative_to(path.resolve())
        if inside or around:
            raise UserError(
                f"data.path: {path} {'lies in' if inside else 'holds'} {RAW}, which this stage replaces; give another place"
            )
        return Origin(path, path.name, "", frozenset())
    if dataset.kaggle_dataset:
        got = kaggle.download_dataset(dataset.kaggle_dataset, version=data.version, cache=download_cache())
        return Origin(got.path, got.source, got.version, frozenset())
    if dataset.kaggle_competition:
        wanted = _wanted_shard(data, frozenset())
        got = kaggle.download_competition(dataset.kaggle_competition, keep=wanted, cache=download_cache())
        return Origin(got.path, got.source, got.version, frozenset(got.files))
    raise UserError(f"params.yaml: data.path is empty, dataset {data.dataset} needs it: -S data.path=/photos")


def _wanted_shard(data: Data, files: frozenset[str]) -> Callable[[str], bool]:
    """Shards; of the competition's only those of the resolution asked for, and of `files` where it names any."""

    several = bool(CATALOG[data.dataset].kaggle_competition)

    def wanted(name: str) -> bool:
        fits = not several or resolution_of(name) in (None, data.resolution)
        return is_shard(name) and fits and (not files or name in files)

    return wanted


def pack_folders(archive: Archive, data: Data) -> Brought:
    """The photographs of class folders as one zip; own photographs may come without splits, which are cut later."""
    own = data.dataset == "folder"
    split = any(split_and_class(name) for name in archive.names)
    place = split_and_class if split or not own else class_alone
    places = {name: found for name in archive.names if (found := place(name))}
    check_splits({found[0] for found in places.values()}, _needed_splits(own, split), archive.where)
    check_classes(places.values(), archive.where)
    check_class_folders(places, archive.folders, archive.where, depth=2 if split else 1)
    if all(len(PurePosixPath(name).parts) > (3 if split else 2) for name in places):
        print(
            f"each image lies in a folder of its class folder, the first as {next(iter(places))}; if the inner folders are the"
            " classes, give the folder that holds them in data.path"
        )
    pack_images(((name, archive.read(name)) for name in places), len(places))
    counts = Counter(found[0] or "not yet split" for found in places.values())
    ignored = {"outside_classes": len(archive.names) - len(places), "other_files": archive.n_ignored}
    return Brought([IMAGES_ZIP], ignored, counts)


def _needed_splits(own: bool, split: bool) -> tuple[str, ...]:
    """Own photographs need train alone, or none at all; "" stands for class folders without splits."""
    if own:
        return ("train",) if split else ("",)
    return SPLITS


def copy_shards(archive: Archive, data: Data) -> Brought:
    """TFRecord shards as they are; their checksums are held by the split check, which reads every record."""
    splits = {name: shard_split(name) for name in archive.names}
    for name, split in splits.items():
        if split is None:
            raise UserError(f"{archive.where}: {name} tells no split; put the shards into train, val and test folders")
    for split in ("train", "valid"):
        if split not in splits.values():
            raise UserError(f"{archive.where}: no {split} shards; put the shards into train, val and test folders")
    IN_PROGRESS.touch()
    for name in tqdm(archive.names, unit="shard", disable=None):
        write_bytes(RAW / name, archive.read(name))
    counts: Counter[str] = Counter()
    for name, split in splits.items():
        counts[str(split)] += count_in_name(Path(name).name) or 0
    return Brought([RAW / name for name in archive.names], {"other_files": archive.n_ignored}, counts)


def pack_sample(data: Data, runtime: Runtime) -> Brought:
    """Draws the synthetic photographs."""
    size = data.sample
    counts = Counter(train=size.train_images, valid=size.valid_images, test=size.test_images)
    photographs = sample.photographs(
        n_species=size.species,
        train_images=size.train_images,
        valid_images=size.valid_images,
        test_images=size.test_images,
        image_px=size.image_px,
        seed=size.seed,
        workers=runtime.n_workers,
    )
    pack_images(photographs, size.species * counts.total())
    return Brought([IMAGES_ZIP], {}, Counter({split: size.species * n for split, n in counts.items()}))


def make_receipt(data: Data, source: str, version: str, brought: Brought) -> Receipt:
    """The receipt of files that lie under data/raw."""
    dataset, counts = CATALOG[data.dataset], brought.counts
    return Receipt(
        dataset=data.dataset,
        title=dataset.title,
        home=dataset.home,
        licence=dataset.licence,
        layout=dataset.layout,
        features=data.features,
        source=source,
        version=version,
        release=matching_release(dataset, counts["train"], counts["valid"], counts["test"]),
        images=dict(sorted(counts.items())),
        ignored=brought.ignored,
        files={
            path.relative_to(RAW).as_posix(): RawFile(bytes=path.stat().st_size, sha256=file_hash(path))
            for path in brought.paths
        },
    )
