"""How many strangers each known score refuses, at the threshold that accepts `evaluate.accept` of valid.

    python benchmarks/strangers.py [--other PROJECT ...] [--most 1000]

Needs data/manifest.csv, data/raw and models/model.safetensors (`dvc repro train`). Strangers are the photographs of other
projects (folders with data/manifest.csv and data/raw of their own; flowers for a butterfly model and the other way round)
and three kinds of generated noise. The scores see what `evaluate` lets them see: class means of train, a threshold from
valid. Known images are those of test (of valid where test has no labels). Printed are, for each score, the share of known
images that is accepted, and for each kind of stranger the share refused and the AUROC against the known images.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.core.intervals import accuracy_interval
from fieldguide.core.manifest import held_out, read_manifest, rows_of
from fieldguide.core.params import Params, read_params
from fieldguide.core.paths import CHECKPOINT, MANIFEST, RAW
from fieldguide.evaluation.metrics import ood_metrics
from fieldguide.evaluation.ood import ood_images
from fieldguide.network.calibration import SCORES, Calibration, KnownScore, Moments, fit_unknown_below, score_tensors
from fieldguide.network.checkpoint import load_checkpoint
from fieldguide.network.device import pick_device
from fieldguide.network.inference import batches_of, views
from fieldguide.network.loader import Prefetching, Resident, Source
from fieldguide.network.models import Classifier

N_NOISE = 200  # images of each kind


def strangers_of(project: Path, most: int) -> pd.DataFrame:
    """Rows in use of another project, `most` of them, spread over its manifest."""
    rows = read_manifest(project / MANIFEST)
    rows = rows[rows["use"]].reset_index(drop=True)
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))].reset_index(drop=True)


def outputs(model: Classifier, source: Source, params: Params) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Mean logits `[B, K]` and embeddings `[B, F]` over the views, batch by batch."""
    batches = batches_of(len(source), params.evaluate.batch_size)
    for logits, embeddings in views(model, source, batches, model.head.weight.device, params.evaluate.tta):
        yield logits.mean(dim=0), embeddings.mean(dim=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, nargs="*", default=[], help="folders of other projects")
    parser.add_argument("--most", type=int, default=1000, help="photographs of each of them")
    arguments = parser.parse_args()

    params = read_params()
    device = pick_device(params.runtime.device)
    model, facts = load_checkpoint(CHECKPOINT)
    model.to(device)
    manifest = read_manifest(MANIFEST)
    split, known_rows = held_out(manifest)

    def opened(rows: pd.DataFrame, raw: Path = RAW) -> Prefetching:
        return Prefetching(rows, raw, facts.image_px, params.runtime.n_workers, device)

    train = rows_of(manifest, "train")
    moments = Moments(len(facts.class_names), model.head.in_features)
    targets = torch.from_numpy(facts.classes.targets(train)).split(params.evaluate.batch_size)
    for (_, embeddings), batch in zip(outputs(model, opened(train), params), targets, strict=True):
        moments.add(embeddings, batch)
    scores = {
        name: KnownScore(Calibration(params.evaluate.tta, 1, 0, name, 0, score_tensors(name, moments))).to(device)
        for name in SCORES
    }

    def scored(source: Source) -> dict[str, np.ndarray]:
        parts = [[score(*batch).cpu() for score in scores.values()] for batch in outputs(model, source, params)]
        return {name: torch.cat(column).numpy() for name, column in zip(scores, zip(*parts, strict=True), strict=True)}

    valid, known = scored(opened(rows_of(manifest, "valid"))), scored(opened(known_rows))
    kinds: dict[str, Source] = {
        project.resolve().name: opened(strangers_of(project, arguments.most), project / RAW) for project in arguments.other
    }
    kinds |= {name: Resident(images.to(device)) for name, images in ood_images(facts.image_px, N_NOISE).items()}
    strange = {kind: scored(source) for kind, source in kinds.items()}

    print(f"{facts.model} at {facts.image_px} px, {len(facts.class_names)} classes, test-time views: {params.evaluate.tta}")
    print(
        f"threshold: {params.evaluate.accept:.0%} of {len(valid['energy'])} valid images; known: {len(known_rows)} of {split}"
    )
    lines = []
    for name in scores:
        threshold = fit_unknown_below(valid[name], params.evaluate.accept)
        for kind, by_score in strange.items():
            figures = ood_metrics(known[name], by_score[name], threshold)
            low, high = accuracy_interval(round(figures.refused * figures.n), figures.n)
            interval = {"refused_low": low, "refused_high": high, "known_accepted": (known[name] >= threshold).mean()}
            lines.append({"score": name, "strangers": kind} | figures.as_dict() | interval)
    print(pd.DataFrame(lines).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
