"""Raw data, with a receipt of source, version and content hash.

Reads `data` of params.yaml; writes data/raw: photographs as one uncompressed images.zip (a large data set as several) with
labels.csv, or as TFRecord shards, left_out.csv (files that are not used), and receipt.json. Run it with `dvc repro download`.
"""

from fieldguide.core.errors import run_command
from fieldguide.core.params import read_params
from fieldguide.core.paths import RAW
from fieldguide.sources.raw import bring_raw_data


def main() -> None:
    params = read_params()
    receipt = bring_raw_data(params.data, params.runtime)
    if receipt.release.startswith("none"):
        print(f"counts differ from all known releases: {receipt.release}")
    n_images, n_bytes = sum(receipt.images.values()), sum(file.bytes for file in receipt.files.values())
    print(f"{f'{n_images} images' if n_images else 'images'}, {n_bytes / 1e6:.1f} MB, from {receipt.source} -> {RAW}")


if __name__ == "__main__":
    run_command(main)
