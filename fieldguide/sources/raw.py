"""data/raw: photographs as uncompressed zips or as TFRecord shards, and a receipt of their origin."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from fieldguide.core.addresses import scheme_of
from fieldguide.core.artifacts import RawFile, Receipt
from fieldguide.core.errors import UserError
from fieldguide.core.files import check_free_space, read_json, write_bytes
from fieldguide.core.formats import TEXT, Kind, counted
from fieldguide.core.names import SPLITS
from fieldguide.core.params import Data, Runtime
from fieldguide.core.paths import IMAGES_ZIP, LABELS, LEFT_OUT, RAW, RECEIPT, download_cache, project_root
from fieldguide.sources import address, kaggle, sample
from fieldguide.sources.archive import Archive, open_archive, pack, stored_members
from fieldguide.sources.catalog import CATALOG, matching_release
from fieldguide.sources.class_names import find_class_names, is_class_names, read_class_names
from fieldguide.sources.index import write_labels, write_left_out
from fieldguide.sources.label_table import (
    NO_TABLE,
    Candidates,
    Contents,
    LabelTable,
    agrees_with_folders,
    named_table,
    only_in_table,
    tables_that_fit,
    the_only,
)
from fieldguide.sources.labels import NO_FILE, NO_ROW
from fieldguide.sources.layout import (
    OUTSIDE_SPLITS,
    SPLIT_NAMES,
    Layout,
    check_classes,
    check_empty_folders,
    check_splits,
    class_names,
    is_shard,
    is_system,
    is_table,
    read_layout,
    resolution_of,
    shard_split,
    wrapper_of,
)
from fieldguide.sources.members import LeftOut, printable
from fieldguide.sources.packs import Photograph, raw_file, write_photographs
from fieldguide.sources.tfrecord import count_in_name, incomplete_series, series_of
from fieldguide.sources.transfer import Download

PHOTOGRAPH = Kind("photograph", is_photograph=True)  # of any kind, in the wrong place
MOVE = "move it into a class folder"
RENAME = "rename its outermost folder to train, valid, test or unlabelled, or move it there"
TABLES = frozenset({".csv", ".tsv", ".gz", ".xlsx", ".xls", ".ods", ".parquet", ".json"})
KINDS = {NO_ROW: PHOTOGRAPH, NO_FILE: Kind("row")}
REMEDIES = {NO_ROW: "add a row, or remove the photograph", NO_FILE: "add the photograph, or remove the row"}
N_NOTED = 3  # tables that do not fit
IN_PROGRESS = RAW / ".begun"  # exists while the stage writes: all files beside it belong to the stage


Stored = Callable[[Mapping[str, str]], dict[Path, RawFile]]
"""Ids by the name in the source to the files in which these photographs now are."""


class RawData(NamedTuple):
    """The files written to data/raw."""

    files: dict[Path, RawFile]  # but those that every data set has
    counts: Counter[str]  # images by split
    left_out: list[LeftOut]
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

    Ignores what systems leave behind (`.DS_Store`).
    """
    if IN_PROGRESS.exists():
        return
    own = {RECEIPT}
    with suppress(UserError):  # missing or damaged; not read as a `Receipt`, to accept other versions
        own |= {RAW / name for name in read_json(RECEIPT).get("files", {})}
    files = (path for path in RAW.rglob("*") if not path.is_dir() and not is_system(path.relative_to(RAW).as_posix()))
    foreign = sorted(set(files) - own)
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if foreign[1:] else ""
        raise UserError(
            f"{foreign[0]}{more} was not written by this stage, which replaces {RAW}; move it elsewhere and set its new path:"
            " -S data.path=/photos"
        )


def store(archive: Archive, ids: Mapping[str, str], data: Data, runtime: Runtime) -> dict[Path, RawFile]:
    """Writes photographs of the archive, by name, under their ids."""
    photographs = [
        Photograph(own, archive.members[name].n_bytes, archive.members[name].stamp, partial(archive.read, name))
        for name, own in ids.items()
    ]
    with _writing():
        return write_photographs(photographs, data.max_side_px, runtime.n_workers)


@contextmanager
def _writing() -> Iterator[None]:
    """Marks the stage as in progress; removes the mark after a `UserError` if no pack was added: the data are as before."""
    before = set(RAW.glob("*.zip"))
    IN_PROGRESS.touch()
    try:
        yield
    except UserError:
        if set(RAW.glob("*.zip")) == before:
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
    is_sample, folders = data.dataset == "sample" and not data.path, CATALOG[data.dataset].layout == "folders"
    if data.max_side_px and (is_sample or not folders):
        what = "the sample is drawn" if is_sample else "TFRecords are kept"
        raise UserError(f"params.yaml: data.max_side_px is {data.max_side_px}, but {what} as they are; set it to 0")
    if is_sample:
        return make_receipt(data, "fieldguide/sources/sample.py", "", pack_sample(data, runtime))
    origin = locate(data)
    keep = None if folders else partial(_is_wanted_shard, data, origin.files)
    with open_archive(origin.path, max_bytes(data), keep, RAW) as archive:
        raw = pack_photographs(archive, data, runtime) if folders else copy_shards(archive, data)
        if raw.left_out:
            write_left_out(raw.left_out)
        if left_out := left_out_in_words(raw.left_out, archive.n_system):
            print(f"left out: {left_out}; see {LEFT_OUT}" if raw.left_out else f"left out: {left_out}")
    return make_receipt(data, origin.source, origin.version, raw, archive.n_system)


def left_out_in_words(left_out: list[LeftOut], n_system: int) -> str:
    """`40 HEIC (install fieldguide[heic]), 2 videos, 1 outside class folders, 3 hidden or system files`."""
    reasons = Counter(file.reason for file in left_out if file.reason)
    parts = [counted(file.kind for file in left_out if not file.reason)]
    parts += [f"{n} {reason}" for reason, n in sorted(reasons.items())]
    parts += [f"{n_system} hidden or system {'file' if n_system == 1 else 'files'}"] if n_system else []
    return ", ".join(filter(None, parts))


def max_bytes(data: Data) -> int:
    return int(data.max_gigabytes * 1e9)


def locate(data: Data) -> Download:
    """The folder or archive in `data.path`, fetched if that is an address, or the download; raises `UserError`."""
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


def pack_photographs(archive: Archive, data: Data, runtime: Runtime) -> RawData:
    """Writes photographs, and their labels: those of a table, or else of class folders."""
    stored = partial(store, archive, data=data, runtime=runtime)
    if data.dataset != "folder":
        return pack_folders(archive, *place_images(archive, data), stored)
    source = Contents(archive.where, archive.names, archive.tables, archive.read)
    if data.table not in ("", NO_TABLE):
        return pack_labelled(archive, named_table(source, data, project_root()), stored)
    candidates = tables_that_fit(source, data) if not data.table else Candidates()
    try:
        layout, classes = place_images(archive, data)
    except UserError as error:
        if fit := the_only(candidates, archive.where):
            return pack_labelled(archive, fit, stored)
        raise UserError(f"{error}{_tables_that_do_not_fit(archive, candidates)}") from error
    for fit in candidates.fits:
        if not agrees_with_folders(fit, classes):
            raise UserError(
                f"{archive.where}: the labels of {fit.name} differ from the folders of the photographs; set data.table to"
                f" {fit.name}, or to {NO_TABLE} if the folders are the classes"
            )
        lost = only_in_table(fit, classes, {name: place.split for name, place in layout.places.items()})
        more = f"; it also has {lost}, for which data.table must be {fit.name}" if lost else ""
        print(f"{fit.name} is not used, but the class folders, with which it agrees{more}")
    for name, problem in list(candidates.problems.items())[:N_NOTED]:
        print(f"{name} is not used, but the class folders: {problem}")
    return pack_folders(archive, layout, classes, stored)


def _tables_that_do_not_fit(archive: Archive, candidates: Candidates) -> str:
    """What to put behind an error of the folders: why the tables beside them are no remedy."""
    if candidates.problems:
        return "; a table of labels does not fit either: " + "; ".join(list(candidates.problems.values())[:N_NOTED])
    tables = [file.name for file in archive.left_out if PurePosixPath(file.name).suffix.lower() in TABLES]
    if not tables:
        return ""
    return f"; if {printable(tables[0])} has the labels, {'' if is_table(tables[0]) else 'save it as CSV and '}set data.table"


def pack_labelled(archive: Archive, fit: LabelTable, stored: Stored) -> RawData:
    """Writes the photographs that a table labels, and those without labels of a test folder."""
    joined = fit.joined
    for note in joined.notes:
        print(f"{fit.name}: {note}")
    names = joined.rows["id"].tolist()
    root = wrapper_of(names) if all("/" in name for name in names) else PurePosixPath()
    ids = [PurePosixPath(name).relative_to(root).as_posix() for name in names]
    files = stored(dict(zip(names, ids, strict=True)))
    rows = joined.rows.assign(id=ids)
    write_labels((rows if rows["group"].ne("").any() else rows.drop(columns="group")).to_numpy().tolist())
    counts = Counter(split or "not yet split" for split in rows["split"])
    missing = [LeftOut(name, KINDS[reason], REMEDIES[reason], reason) for name, reason in joined.left_out]
    return RawData(files, counts, [*(file for file in archive.left_out if file.name not in fit.used), *missing])


def place_images(archive: Archive, data: Data) -> tuple[Layout, dict[str, str]]:
    """Places and classes by folders; raises `UserError` for folders that are no layout of classes."""
    layout = read_layout(archive.names, archive.folders, archive.where)
    present = {place.split for place in layout.places.values()}
    own = data.dataset == "folder"
    needed = SPLITS if not own else ("train",) if layout.has_splits else ("",)  # "" stands for class folders without splits
    check_splits(present, needed, archive.where)
    classes = class_names(layout, data.class_from, archive.where)
    check_classes(classes.values(), archive.where)
    check_empty_folders(layout, archive.where, counted(file.kind for file in archive.left_out if file.kind.is_left_out))
    for name in sorted(archive.garbled & set(classes)):
        if not classes[name].isascii():
            raise UserError(
                f"{archive.where}: the class name {classes[name]!r} is garbled: the zip's names are not in UTF-8; pack the"
                " folder again (7-Zip, macOS and zip write UTF-8), or unpack it where it was made and use the folder"
            )
    depth = max(len(place.folders) for place in layout.places.values())
    if depth > 1:
        name = next(name for name, place in layout.places.items() if len(place.folders) == depth)
        print(f"class of {name}: {classes[name]} (data.class_from: {data.class_from}; last, path or first)")
    return layout, classes


def pack_folders(archive: Archive, layout: Layout, classes: Mapping[str, str], stored: Stored) -> RawData:
    """Writes the photographs of class folders and their labels; the split check draws splits that are missing."""
    ids = {name: PurePosixPath(name).relative_to(PurePosixPath(*layout.root)).as_posix() for name in layout.places}
    files = stored(ids)
    write_labels((ids[name], place.split, classes[name]) for name, place in layout.places.items())
    counts = Counter(place.split or "not yet split" for place in layout.places.values())
    outside = [
        LeftOut(name, PHOTOGRAPH, RENAME if reason == OUTSIDE_SPLITS else MOVE, reason)
        for name, reason in layout.outside.items()
    ]
    return RawData(files, counts, [*archive.left_out, *outside])


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
    _refuse_several_sets(splits, archive.where, remedy)
    for split in ("train",) if data.dataset == "tfrecords" else ("train", "valid"):  # the split check draws what is missing
        if split not in splits.values():
            raise UserError(f"{archive.where}: no {split} shards; {remedy}")
    if data.class_names:
        class_names = read_class_names(project_root() / os.path.expanduser(data.class_names))
    else:
        class_names = find_class_names(lists, archive.read, data.features.label, archive.where)
    for series, n_shards, total in incomplete_series(splits):
        print(f"{archive.where}: {n_shards} of {total} shards of {series} are there; the images of the others are missing")
    check_free_space(RAW, archive.n_bytes)
    IN_PROGRESS.touch()
    for name in tqdm(splits, unit="shard", disable=None):
        write_bytes(RAW / name, archive.read(name))
    files = {RAW / name: raw_file(RAW / name) for name in splits}
    counts: Counter[str] = Counter()
    for name, split in splits.items():
        counts[str(split)] += count_in_name(Path(name).name) or 0
    unused = [LeftOut(name, TEXT) for name in lists if data.class_names]
    return RawData(files, counts, [*archive.left_out, *unused], class_names or None)


def _refuse_several_sets(splits: Mapping[str, str | None], where: str, remedy: str) -> None:
    """Raises `UserError` for shards of several data sets, configurations or versions, whose labels may differ in meaning.

    They are told by two series of one split (`beans-train.tfrecord-00000-of-00002`) outside folders of splits.
    """
    first: dict[str | None, str] = {}
    for name, split in splits.items():
        series = series_of(name)
        if series is None or any(folder.casefold() in SPLIT_NAMES for folder in PurePosixPath(name).parts[:-1]):
            continue
        if (other := first.setdefault(split, series[0])) != series[0]:
            raise UserError(
                f"{where}: {other} and {series[0]} are shards of two data sets; set data.path to the folder of one, or, if they"
                f" belong together, {remedy}"
            )


def pack_sample(data: Data, runtime: Runtime) -> RawData:
    """Draws and packs the synthetic photographs."""
    size = data.sample
    counts = Counter({split: size.species * getattr(size, f"{split}_images") for split in SPLITS})
    settings = size.model_dump(exclude={"species"})
    photographs = sample.photographs(n_species=size.species, workers=runtime.n_workers, **settings)
    with _writing():
        pack(tqdm(photographs, total=counts.total(), unit="image", disable=None), IMAGES_ZIP)
    write_labels((name, *name.split("/")[:2]) for name, _, _ in stored_members(IMAGES_ZIP))
    return RawData({IMAGES_ZIP: raw_file(IMAGES_ZIP)}, counts, [])


def make_receipt(data: Data, source: str, version: str, raw: RawData, n_system: int = 0) -> Receipt:
    """The receipt of the files under data/raw."""
    dataset, counts = CATALOG[data.dataset], raw.counts
    ignored = Counter(file.reason or file.kind.name for file in raw.left_out)
    ignored["hidden or system file"] += n_system
    tables = [LABELS] * (dataset.layout == "folders") + [LEFT_OUT] * bool(raw.left_out)
    files = raw.files | {path: raw_file(path) for path in tables}
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
        ignored={reason: n for reason, n in sorted(ignored.items()) if n},
        class_names=raw.class_names,
        max_side_px=data.max_side_px or None,
        files={path.relative_to(RAW).as_posix(): file for path, file in files.items()},
    )
