"""An embedding of every image by a network with published weights, by which label_check compares them.

Reads data/raw and `label_check` of params.yaml; writes data/embeddings.safetensors. Depends on no split and no label, so that
it runs once per data set. Run it with `dvc repro embed`.
"""

from fieldguide.core.artifacts import Receipt
from fieldguide.core.errors import run_command
from fieldguide.core.params import read_params
from fieldguide.core.paths import EMBEDDINGS, RAW, RECEIPT
from fieldguide.network.embeddings import embed_images, save_embeddings
from fieldguide.sources.index import index_images


def main() -> None:
    params = read_params()
    embeddings = embed_images(index_images(Receipt.read(RECEIPT), RAW), RAW, params.label_check, params.runtime)
    save_embeddings(EMBEDDINGS, embeddings, params.label_check)
    n_images, size = embeddings.vectors.shape
    print(f"{n_images} embeddings of length {size} -> {EMBEDDINGS}" if size else f"label_check is off -> {EMBEDDINGS}, empty")


if __name__ == "__main__":
    run_command(main)
