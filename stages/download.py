"""Raw data, untouched afterwards, with a receipt of source, version and content hash.

Reads `data` of params.yaml; writes data/raw: photographs as one uncompressed images.zip or TFRecord shards as they are,
and receipt.json. Run it with `dvc repro download`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from fieldguide.core.errors import UserError, run_command
from fieldguide.core.files import check_free_space, file_hash, read_json, write_bytes, write_json
from fieldguide.core.names import SPLITS
from fieldguide.core.params import Data, Runtime, read_params
from fieldguide.core.paths import IMAGES_ZIP, RAW, RECEIPT, download_cache, project_root
from fieldguide.sources import kaggle, sample
from fieldguide.sources.archive import Source, open_source, pack
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

BEGUN = RAW / ".begun"  # stands there while the stage writes: all beside it is the stage's own


def main() -> None:
    params = read_params()
    try:
        RAW.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{RAW}: could not be made ({error.strerror}); remove what is in its place or permit it") from error
    refuse_foreign_files()
    receipt = download(params.data, params.runtime)
    remove_old_files(RAW / name for name in receipt["files"])
    write_json(RECEIPT, receipt)
    BEGUN.unlink()
    n_bytes = sum(file["bytes"] for file in receipt["files"].values())
    if receipt["release"].startswith("none"):
        print(f"counts differ from every release that is known: {receipt['release']}")
    ignored = ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in receipt["ignored"].items() if n)
    n_images = sum(receipt["images"].values())
    print(f"{f'{n_images} images' if n_images else 'images'}, {n_bytes / 1e6:.1f} MB, from {receipt['source']} -> {RAW}")
    if ignored:
        print(f"ignored: {ignored}")


def refuse_foreign_files() -> None:
    """Raises `UserError` where something lies in data/raw that this stage did not bring, as it replaces all of it.

    Hidden files are a system's own (`.DS_Store`), not a user's.
    """
    if BEGUN.exists():
        return
    own = {RECEIPT}
    with suppress(UserError):  # of the first time, or damaged
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
    BEGUN.touch()
    try:
        pack(tqdm(members, total=n_images, unit="image", disable=None), IMAGES_ZIP)
    except UserError:
        BEGUN.unlink()
        raise


def remove_old_files(new: Iterable[Path]) -> None:
    """What lies in data/raw beside `new`, and folders that are empty then."""
    kept = {BEGUN, *new}
    for path in sorted(RAW.rglob("*"), reverse=True):  # a folder after what is in it
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
        elif path not in kept:
            path.unlink()


def download(data: Data, runtime: Runtime) -> dict[str, Any]:
    """Brings the raw data of `data` under data/raw and returns their receipt."""
    if data.dataset == "sample" and not data.path:
        n_images = pack_sample(data, runtime)
        return receipt_of(data, "fieldguide/sources/sample.py", "", [IMAGES_ZIP], {}, n_images)
    path, source, version, files = origin(data)
    folders = CATALOG[data.dataset].layout == "folders"
    keep = is_image if folders else _wanted_shard(data, files)
    with open_source(path, int(data.max_gigabytes * 1e9), keep) as opened:
        check_free_space(RAW, opened.n_bytes)
        bring = pack_folders if folders else copy_shards
        paths, ignored, counts = bring(opened, data)
    return receipt_of(data, source, version, paths, ignored | {"other_files": opened.n_ignored}, counts)


def origin(data: Data) -> tuple[Path, str, str, frozenset[str]]:
    """Where the raw data lie now: (path, source, version, names of the files wanted; none = all)."""
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
        return path, path.name, "", frozenset()
    if dataset.kaggle_dataset:
        got = kaggle.download_dataset(dataset.kaggle_dataset, version=data.version, cache=download_cache())
        return got.path, got.source, got.version, frozenset()
    if dataset.kaggle_competition:
        wanted = _wanted_shard(data, frozenset())
        got = kaggle.download_competition(dataset.kaggle_competition, keep=wanted, cache=download_cache())
        return got.path, got.source, got.version, frozenset(got.files)
    raise UserError(f"params.yaml: data.path is empty, dataset {data.dataset} needs it: -S data.path=/photos")


def _wanted_shard(data: Data, files: frozenset[str]) -> Callable[[str], bool]:
    """Shards; of the competition's only those of the resolution asked for, and of `files` where it names any."""

    several = bool(CATALOG[data.dataset].kaggle_competition)

    def wanted(name: str) -> bool:
        fits = not several or resolution_of(name) in (None, data.resolution)
        return is_shard(name) and fits and (not files or name in files)

    return wanted


Brought = tuple[list[Path], dict[str, int], Counter[str]]  # files under data/raw, what was ignored, images by split


def pack_folders(source: Source, data: Data) -> Brought:
    """The photographs of class folders as one zip; own photographs may come without splits, which are cut later."""
    own = data.dataset == "folder"
    split = any(split_and_class(name) for name in source.names)
    place = split_and_class if split or not own else class_alone
    places = {name: found for name in source.names if (found := place(name))}
    check_splits({found[0] for found in places.values()}, _needed_splits(own, split), source.where)
    check_classes(places.values(), source.where)
    check_class_folders(places, source.folders, source.where, depth=2 if split else 1)
    if all(len(PurePosixPath(name).parts) > (3 if split else 2) for name in places):
        print(
            f"each image lies in a folder of its class folder, the first as {next(iter(places))}; if the inner folders are the"
            " classes, give the folder that holds them in data.path"
        )
    pack_images(((name, source.read(name)) for name in places), len(places))
    counts = Counter(found[0] or "not yet split" for found in places.values())
    return [IMAGES_ZIP], {"outside_classes": len(source.names) - len(places)}, counts


def _needed_splits(own: bool, split: bool) -> tuple[str, ...]:
    """Own photographs need train alone, or none at all; "" stands for class folders without splits."""
    if own:
        return ("train",) if split else ("",)
    return SPLITS


def copy_shards(source: Source, data: Data) -> Brought:
    """TFRecord shards as they are; their checksums are held by the split check, which reads every record."""
    splits = {name: shard_split(name) for name in source.names}
    for name, split in splits.items():
        if split is None:
            raise UserError(f"{source.where}: {name} tells no split; put the shards into train, val and test folders")
    for split in ("train", "valid"):
        if split not in splits.values():
            raise UserError(f"{source.where}: no {split} shards; put the shards into train, val and test folders")
    BEGUN.touch()
    for name in tqdm(source.names, unit="shard", disable=None):
        write_bytes(RAW / name, source.read(name))
    counts: Counter[str] = Counter()
    for name, split in splits.items():
        counts[str(split)] += count_in_name(Path(name).name) or 0
    return [RAW / name for name in source.names], {}, counts


def pack_sample(data: Data, runtime: Runtime) -> Counter[str]:
    """The synthetic photographs, drawn here and now."""
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
    return Counter({split: size.species * n for split, n in counts.items()})


def receipt_of(
    data: Data, source: str, version: str, paths: Iterable[Path], ignored: dict[str, int], counts: Counter[str]
) -> dict[str, Any]:
    """What was got; names no date and no folder of this machine, so that the same data give the same bytes."""
    dataset = CATALOG[data.dataset]
    return {
        "dataset": data.dataset,
        "title": dataset.title,
        "home": dataset.home,
        "licence": dataset.licence,
        "layout": dataset.layout,
        "features": data.features.model_dump(),
        "source": source,
        "version": version,
        "release": matching_release(dataset, counts["train"], counts["valid"], counts["test"]),
        "images": dict(sorted(counts.items())),
        "ignored": ignored,
        "files": {
            path.relative_to(RAW).as_posix(): {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in paths
        },
    }


if __name__ == "__main__":
    run_command(main)
