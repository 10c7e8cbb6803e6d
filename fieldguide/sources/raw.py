"""data/raw: photographs as one uncompressed images.zip or as TFRecord shards, and a receipt of their origin."""

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from fieldguide.core.addresses import scheme_of
from fieldguide.core.artifacts import RawFile, Receipt
from fieldguide.core.errors import UserError
from fieldguide.core.files import check_free_space, file_hash, read_json, write_bytes
from fieldguide.core.names import SPLITS
from fieldguide.core.params import Data, Runtime
from fieldguide.core.paths import IMAGES_ZIP, RAW, RECEIPT, download_cache, project_root
from fieldguide.sources import address, kaggle, sample
from fieldguide.sources.archive import Archive, open_archive, pack
from fieldguide.sources.catalog import CATALOG, matching_release
from fieldguide.sources.class_names import find_class_names, is_class_names, read_class_names
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
from fieldguide.sources.tfrecord import count_in_name, incomplete_series
from fieldguide.sources.transfer import Download

IN_PROGRESS = RAW / ".begun"  # exists while the stage writes: all files beside it belong to the stage


class RawData(NamedTuple):
    """The files written to data/raw."""

    paths: list[Path]
    ignored: dict[str, int]  # files of the source, by the reason
    counts: Counter[str]  # images by split
    class_names: list[str] | None = None  # by label, if a list came with the data


def bring_raw_data(data: Data, runtime: Runtime) -> Receipt:
    """Replaces the content of data/raw by the data that `data` names; writes and returns their receipt."""
    try:
        RAW.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{RAW}: could not be created ({error.strerror}); remove the file of that name or fix the permissions"
        ) from error
    refuse_foreign_files()
    receipt = download(data, runtime)
    remove_old_files(RAW / name for name in receipt.files)
    receipt.write(RECEIPT)
    IN_PROGRESS.unlink()
    return receipt


def refuse_foreign_files() -> None:
    """Raises `UserError` for files in data/raw that this stage did not write, because it replaces the folder.

    Ignores hidden files (`.DS_Store`).
    """
    if IN_PROGRESS.exists():
        return
    own = {RECEIPT}
    with suppress(UserError):  # missing or damaged; not read as a `Receipt`, to accept other versions
        own |= {RAW / name for name in read_json(RECEIPT).get("files", {})}
    files = (path for path in RAW.rglob("*") if not path.is_dir() and not is_hidden(PurePosixPath(path.relative_to(RAW))))
    foreign = sorted(set(files) - own)
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if foreign[1:] else ""
        raise UserError(
            f"{foreign[0]}{more} was not written by this stage, which replaces {RAW}; move it elsewhere and set its new path:"
            " -S data.path=/photos"
        )


def pack_images(members: Iterable[tuple[str, bytes]], n_images: int) -> None:
    """Writes images.zip, atomically."""
    IN_PROGRESS.touch()
    try:
        pack(tqdm(members, total=n_images, unit="image", disable=None), IMAGES_ZIP)
    except UserError:
        IN_PROGRESS.unlink()
        raise


def remove_old_files(new: Iterable[Path]) -> None:
    """Removes all files of data/raw except `new`, and empty folders."""
    kept = {IN_PROGRESS, *new}
    for path in sorted(RAW.rglob("*"), reverse=True):  # a folder after its content
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
        elif path not in kept:
            path.unlink()


def download(data: Data, runtime: Runtime) -> Receipt:
    """Writes the data that `data` names to data/raw and returns their receipt; removes nothing."""
    if data.dataset == "sample" and not data.path:
        return make_receipt(data, "fieldguide/sources/sample.py", "", pack_sample(data, runtime))
    origin = locate(data)
    folders = CATALOG[data.dataset].layout == "folders"
    keep = is_image if folders else partial(_is_wanted_shard, data, origin.files)
    with open_archive(origin.path, max_bytes(data), keep) as archive:
        check_free_space(RAW, archive.n_bytes)
        raw = (pack_folders if folders else copy_shards)(archive, data)
    return make_receipt(data, origin.source, origin.version, raw)


def max_bytes(data: Data) -> int:
    return int(data.max_gigabytes * 1e9)


def locate(data: Data) -> Download:
    """The zip or folder in `data.path`, fetched if that is an address, or the download; raises `UserError`."""
    dataset = CATALOG[data.dataset]
    if data.version and (data.path or not dataset.kaggle_dataset):
        raise UserError(f"params.yaml: data.version is {data.version}, but only a Kaggle data set has versions; set it to ''")
    if data.class_names and (dataset.layout != "tfrecords" or dataset.class_names):
        raise UserError(f"params.yaml: data.class_names is set, but {data.dataset} has its own names; set it to ''")
    if scheme_of(data.path):
        return address.fetch(data.path, max_bytes=max_bytes(data), cache=download_cache())
    if data.path:
        path = project_root() / os.path.expanduser(data.path)
        inside = path.resolve().is_relative_to(RAW.resolve())
        around = CATALOG[data.dataset].layout != "folders" and RAW.resolve().is_relative_to(path.resolve())
        if inside or around:
            raise UserError(
                f"data.path: {path} {'is inside' if inside else 'contains'} {RAW}, which this stage replaces; move the data"
            )
        return Download(path, path.name, "")
    if dataset.kaggle_dataset:
        return kaggle.download_dataset(dataset.kaggle_dataset, version=data.version, cache=download_cache())
    if dataset.kaggle_competition:
        wanted = partial(_is_wanted_shard, data, frozenset())
        return kaggle.download_competition(dataset.kaggle_competition, keep=wanted, cache=download_cache())
    raise UserError(f"params.yaml: data.path is empty, but dataset {data.dataset} needs it: -S data.path=/photos")


def _is_wanted_shard(data: Data, files: frozenset[str], name: str) -> bool:
    """Whether a member is a shard or a list of class names.

    Of the competition only shards of `data.resolution`; of `files` if it is not empty.
    """
    if not CATALOG[data.dataset].kaggle_competition:
        return is_shard(name) or is_class_names(name)
    return is_shard(name) and resolution_of(name) in (None, data.resolution) and (not files or name in files)


def pack_folders(archive: Archive, data: Data) -> RawData:
    """Writes the photographs of class folders as one zip; the split check draws splits that the data do not have."""
    own = data.dataset == "folder"
    split = any(split_and_class(name) for name in archive.names)
    place = split_and_class if split or not own else class_alone
    places = {name: split_class for name in archive.names if (split_class := place(name))}
    needed = SPLITS if not own else ("train",) if split else ("",)  # "" stands for class folders without splits
    check_splits({split for split, _ in places.values()}, needed, archive.where)
    check_classes(places.values(), archive.where)
    check_class_folders(places, archive.folders, archive.where, depth=2 if split else 1)
    if all(len(PurePosixPath(name).parts) > (3 if split else 2) for name in places):
        print(
            f"all images are in subfolders of their class folders, for example {next(iter(places))}; if the subfolders are the"
            " classes, set data.path to their parent"
        )
    pack_images(((name, archive.read(name)) for name in places), len(places))
    counts = Counter(split_name or "not yet split" for split_name, _ in places.values())
    ignored = {"outside_classes": len(archive.names) - len(places), "other_files": archive.n_ignored}
    return RawData([IMAGES_ZIP], ignored, counts)


def copy_shards(archive: Archive, data: Data) -> RawData:
    """Copies TFRecord shards; the split check, which reads every record, verifies their checksums.

    Class names are taken from `data.class_names` or from the list beside the shards.
    """
    lists = [name for name in archive.names if is_class_names(name)]
    splits = {name: shard_split(name) for name in archive.names if name not in lists}
    remedy = "move the shards to folders train, val and test"
    for name, split in splits.items():
        if split is None:
            raise UserError(f"{archive.where}: {name} has no split in its path; {remedy}")
    for split in ("train",) if data.dataset == "tfrecords" else ("train", "valid"):  # the split check draws what is missing
        if split not in splits.values():
            raise UserError(f"{archive.where}: no {split} shards; {remedy}")
    if data.class_names:
        class_names = read_class_names(project_root() / os.path.expanduser(data.class_names))
    else:
        class_names = find_class_names(lists, archive.read, data.features.label, archive.where)
    for series, n_shards, total in incomplete_series(splits):
        print(f"{archive.where}: {n_shards} of {total} shards of {series} are there; the images of the others are missing")
    IN_PROGRESS.touch()
    for name in tqdm(splits, unit="shard", disable=None):
        write_bytes(RAW / name, archive.read(name))
    counts: Counter[str] = Counter()
    for name, split in splits.items():
        counts[str(split)] += count_in_name(Path(name).name) or 0
    return RawData([RAW / name for name in splits], {"other_files": archive.n_ignored}, counts, class_names or None)


def pack_sample(data: Data, runtime: Runtime) -> RawData:
    """Draws and packs the synthetic photographs."""
    size = data.sample
    counts = Counter({split: size.species * getattr(size, f"{split}_images") for split in SPLITS})
    settings = size.model_dump(exclude={"species"})
    pack_images(sample.photographs(n_species=size.species, workers=runtime.n_workers, **settings), counts.total())
    return RawData([IMAGES_ZIP], {}, counts)


def make_receipt(data: Data, source: str, version: str, raw: RawData) -> Receipt:
    """The receipt of the files under data/raw."""
    dataset, counts = CATALOG[data.dataset], raw.counts
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
        ignored=raw.ignored,
        class_names=raw.class_names,
        files={
            path.relative_to(RAW).as_posix(): RawFile(bytes=path.stat().st_size, sha256=file_hash(path)) for path in raw.paths
        },
    )
