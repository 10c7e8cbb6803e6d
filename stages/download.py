"""Raw data, untouched afterwards, with a receipt of source, version and content hash.

Reads `data` of params.yaml; writes data/raw/images.zip (uncompressed) and data/raw/receipt.json.
Run it with `dvc repro download`.
"""

from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from fieldguide import sample
from fieldguide.archive import Source, check_free_space, open_source, pack
from fieldguide.catalog import CATALOG
from fieldguide.errors import UserError, run_command
from fieldguide.files import file_hash, write_json
from fieldguide.layout import check_folders, split_and_class
from fieldguide.params import Data, Runtime, read_params
from fieldguide.paths import IMAGES_ZIP, RAW, RECEIPT, project_root


def main() -> None:
    params = read_params()
    RAW.mkdir(parents=True, exist_ok=True)
    receipt = download(params.data, params.runtime)
    write_json(RECEIPT, receipt)
    print(f"{receipt['images']} images, {IMAGES_ZIP.stat().st_size / 1e6:.1f} MB, from {receipt['source']} -> {RAW}")


def download(data: Data, runtime: Runtime) -> dict[str, object]:
    """Brings the raw data of `data` under data/raw and returns their receipt."""
    dataset = CATALOG[data.dataset]
    if data.path:
        return _pack_source(data, project_root() / Path(data.path).expanduser())
    match dataset.origin:
        case "generated":
            return _pack_sample(data, runtime)
        case "path":
            raise UserError(f"data.path is empty; dataset {data.dataset} needs it: -S data.path=/photos")
    raise UserError(f"data.path is empty; download {dataset.home} as a zip and give it: -S data.path=/downloads/archive.zip")


def _pack_source(data: Data, path: Path) -> dict[str, object]:
    """An archive or a folder of the user's, its images only."""
    with open_source(path, max_bytes=int(data.max_gigabytes * 1e9)) as source:
        names = [name for name in source.names if split_and_class(name)]
        check_folders(names, source.folders, source.where)
        check_free_space(RAW, source.n_bytes)
        n_images = pack(tqdm(_contents(source, names), total=len(names), unit="image", disable=None), IMAGES_ZIP)
    n_outside = len(source.names) - len(names)
    return _receipt(data, path.name, n_images, ignored={"not_images": source.n_ignored, "outside_splits": n_outside})


def _contents(source: Source, names: list[str]) -> Iterator[tuple[str, bytes]]:
    return ((name, source.read(name)) for name in names)


def _pack_sample(data: Data, runtime: Runtime) -> dict[str, object]:
    """The synthetic photographs, drawn here and now."""
    size = data.sample
    photographs = sample.photographs(
        n_species=size.species,
        train_images=size.train_images,
        valid_images=size.valid_images,
        test_images=size.test_images,
        image_px=size.image_px,
        seed=size.seed,
        workers=runtime.n_workers,
    )
    n_images = size.species * (size.train_images + size.valid_images + size.test_images)
    pack(tqdm(photographs, total=n_images, unit="image", disable=None), IMAGES_ZIP)
    return _receipt(data, "fieldguide/sample.py", n_images, ignored={"not_images": 0, "outside_splits": 0})


def _receipt(data: Data, source: str, n_images: int, ignored: dict[str, int]) -> dict[str, object]:
    """What was got; names no date and no folder of this machine, so that the same data give the same bytes."""
    dataset = CATALOG[data.dataset]
    return {
        "dataset": data.dataset,
        "title": dataset.title,
        "home": dataset.home,
        "layout": dataset.layout,
        "source": source,
        "images": n_images,
        "ignored": ignored,
        "files": {IMAGES_ZIP.name: {"bytes": IMAGES_ZIP.stat().st_size, "sha256": file_hash(IMAGES_ZIP)}},
    }


if __name__ == "__main__":
    run_command(main)
