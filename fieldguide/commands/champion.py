"""Which model is in use: a run's model challenges the champion on the same test images, and is promoted if it wins.

A challenger is picked by its accuracy on valid, never on test. It wins if the 95 % interval of the difference in accuracy,
on the same images, lies above 0. The first champion needs no comparison.
"""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fieldguide.core.errors import UserError
from fieldguide.core.files import file_hash
from fieldguide.core.intervals import accuracy_interval
from fieldguide.core.manifest import as_labelled, read_manifest, rows_of
from fieldguide.core.paths import MANIFEST, RAW
from fieldguide.evaluation.metrics import paired_difference
from fieldguide.onnx.classifier import OnnxClassifier
from fieldguide.onnx.proof import BATCH_SIZES, run_alone
from fieldguide.tracking.registry import CHAMPION, NAME, SCHEME, ExportedRun, Registry, open_registry
from fieldguide.tracking.store import CHECKPOINT_TAG, DATA_TAG, EXPERIMENT_TAG, ONNX_TAG

if TYPE_CHECKING:
    from fieldguide.tracking.registry import ModelVersion

PICKED_BY = ("evaluate.valid.accuracy", "evaluate.valid.loss")  # the second breaks ties
COPIED_TAGS = (EXPERIMENT_TAG, "mlflow.source.git.commit", CHECKPOINT_TAG, DATA_TAG, "fieldguide.lock_sha256")
COLUMNS = ["sha256", "truth", "answer_1"]
SHORTEST_ID = 7  # characters of a run's id that identify it


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for each image of a split; `table` has `COLUMNS`, sorted by image."""

    split: str
    table: pd.DataFrame

    @property
    def right(self) -> np.ndarray:
        """bool `[N]`."""
        return (self.table["answer_1"] == self.table["truth"]).to_numpy(dtype=bool)

    def same_images(self, other: "Predictions") -> bool:
        """Whether both have the same images, by content, with the same labels."""
        return self.table[COLUMNS[:2]].equals(other.table[COLUMNS[:2]])

    def as_dict(self) -> dict[str, float]:
        """Accuracy, its 95 % interval and the number of images, with the keys of metrics/evaluate.json."""
        low, high = accuracy_interval(int(self.right.sum()), len(self.right))
        return {"accuracy": float(self.right.mean()), "accuracy_low": low, "accuracy_high": high, "n": len(self.right)}

    def summary_line(self) -> str:
        values = "{accuracy:.2%}, 95 % interval {accuracy_low:.1%} to {accuracy_high:.1%} (n={n})".format(**self.as_dict())
        return f"{self.split} accuracy {values}"


def champion(args: Namespace) -> int:
    """Promotes the model of a run, or of the best run, if it wins; returns 0 if it is the champion now, else 1."""
    with open_registry() as registry, TemporaryDirectory() as folder:
        challenger = pick_challenger(registry.exported_runs(), args.name)
        predictions = logged_predictions(registry, challenger.run.info.run_id, Path(folder))
        check_model(registry.model_file(challenger.model), predictions, challenger.name)
        print(f"challenger {challenger.name}: {predictions.summary_line()}")
        current = registry.champion()
        reason = "the first champion"
        if current and current.tags.get(ONNX_TAG) == challenger.md5:
            print(f"nothing to do: it is the champion, version {current.version} of {NAME}")
            return 0
        if current:
            wins, reason = contest(registry, challenger, predictions, current, args.force, Path(folder))
            if not wins and not args.force:
                print(f"not promoted: {reason}; the champion is still version {current.version} (--force promotes anyway)")
                return 1
            reason = reason if wins else f"by force, {reason}"
        tags = {key: value for key in COPIED_TAGS if (value := challenger.run.data.tags.get(key))}
        tags |= {f"evaluate.{predictions.split}.{key}": str(value) for key, value in predictions.as_dict().items()}
        version = registry.promote(challenger, tags | {"fieldguide.promoted": reason})
        print(f"promoted: {reason}; {SCHEME}{NAME}@{CHAMPION} is version {version.version}")
        return 0


def pick_challenger(runs: list[ExportedRun], name: str | None) -> ExportedRun:
    """The latest run of this name or id, or the best on valid of those on the data of the latest run."""
    if not runs:
        raise UserError("MLflow: no run has an exported model; create one with: dvc repro")
    if name:
        named = [each for each in runs if name in (each.run.info.run_name, each.run.data.tags.get(EXPERIMENT_TAG))]
        named = named or [each for each in runs if len(name) >= SHORTEST_ID and each.run.info.run_id.startswith(name)]
        if not named:
            latest = ", ".join(each.run.info.run_name for each in runs[:5])
            raise UserError(f"{name}: no run of this name or id has an exported model; the latest with one: {latest}")
        return named[0]
    data = runs[0].run.data.tags.get(DATA_TAG)
    accuracy, loss = PICKED_BY
    same_data = [each for each in runs if each.run.data.tags.get(DATA_TAG) == data]
    rivals = [each for each in same_data if each.run.data.metrics.keys() >= {accuracy, loss}]
    if not rivals:
        raise UserError(f"MLflow: no run on the latest data has {accuracy}; run: dvc repro evaluate, or name a run")
    best = max(rivals, key=lambda each: (each.run.data.metrics[accuracy], -each.run.data.metrics[loss]))
    print(f"{best.run.info.run_name} has the best {accuracy}, {best.run.data.metrics[accuracy]:.2%}, of {len(rivals)} runs")
    return best


def contest(
    registry: Registry, challenger: ExportedRun, predictions: Predictions, current: "ModelVersion", force: bool, folder: Path
) -> tuple[bool, str]:
    """Whether the challenger wins, and the reason in words; raises `UserError` if they cannot be compared, unless `force`."""
    try:
        other = champion_predictions(registry, challenger, predictions, current, folder)
    except UserError as error:
        if not force:
            raise UserError(f"{error}; or promote without a comparison: --force") from error
        return False, "not compared with the champion"
    print(f"champion   version {current.version}: {other.summary_line()}")
    difference, low, high = paired_difference(predictions.right, other.right)
    n_gained, n_lost = int((predictions.right & ~other.right).sum()), int((~predictions.right & other.right).sum())
    interval = f"{100 * difference:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
    print(f"difference {interval}: right on {n_gained} images that the champion gets wrong, wrong on {n_lost} it gets right")
    if low > 0:
        return True, f"significantly better than version {current.version} ({interval})"
    return False, f"{'worse' if high < 0 else 'not significantly better'} than version {current.version} ({interval})"


def champion_predictions(
    registry: Registry, challenger: ExportedRun, predictions: Predictions, current: "ModelVersion", folder: Path
) -> Predictions:
    """The champion's predictions for the challenger's images: logged by its own run, or computed here."""
    try:
        other = logged_predictions(registry, current.run_id or "", folder / "champion")
        if other.same_images(predictions):
            return other
        fault = f"its {len(other.table)} images of {other.split} are not the challenger's {len(predictions.table)}"
    except UserError as error:
        fault = str(error)
    manifest_md5 = file_hash(MANIFEST, "md5") if MANIFEST.exists() else ""
    if manifest_md5 != challenger.run.data.tags.get(DATA_TAG):
        raise UserError(
            f"champion, version {current.version}: {fault}, and {MANIFEST} is not that of the challenger, so that it cannot be"
            " evaluated here; restore it with: dvc exp apply, or dvc checkout"
        )
    file = registry.file(f"{SCHEME}{NAME}/{current.version}")
    rows, classifier = rows_of(as_labelled(read_manifest(MANIFEST)), predictions.split), OnnxClassifier(file)
    known = OnnxClassifier(registry.model_file(challenger.model)).class_names
    if missing := [name for name in classifier.class_names if name not in known]:
        more = f" and {len(missing) - 1} more of its classes" if missing[1:] else ""
        raise UserError(f"champion, version {current.version}: {fault}; the challenger does not know {missing[0]}{more}")
    print(f"champion   evaluated here: {fault}")
    places = list(rows[["file", "offset", "length"]].itertuples(index=False, name=None))
    size = max(BATCH_SIZES)
    answers = np.array(classifier.class_names)[run_alone(file, RAW, places, batch_sizes=(size,)).predicted[size]]
    table = pd.DataFrame({"id": rows["id"], "sha256": rows["sha256"], "truth": rows["given"], "answer_1": answers})
    return Predictions(predictions.split, _sort(table))


def logged_predictions(registry: Registry, run_id: str, folder: Path) -> Predictions:
    """The predictions that evaluate logged for test, or for valid without labels; raises `UserError` if there are none."""
    folder.mkdir(exist_ok=True)
    table = pd.read_csv(registry.predictions(run_id, folder), dtype=str, keep_default_na=False)
    if lacking := set(COLUMNS) - set(table.columns):
        raise UserError(f"run {run_id}: its predictions lack {', '.join(sorted(lacking))}")
    split = "test" if "test" in set(table["split"]) else "valid"
    return Predictions(split, _sort(table[table["split"] == split]))


def check_model(model: Path, predictions: Predictions, name: str) -> None:
    """Raises `UserError` unless the file was exported after the evaluation of these predictions."""
    evaluated = OnnxClassifier(model).metadata["evaluate"]
    of_model = (evaluated["split"], evaluated["n"], round(evaluated["accuracy"] * evaluated["n"]))
    of_predictions = (predictions.split, len(predictions.right), int(predictions.right.sum()))
    if of_model != of_predictions:
        texts = ["{2} of {1} {0} images right".format(*each) for each in (of_model, of_predictions)]
        raise UserError(
            f"{name}: its model has {texts[0]}, its predictions have {texts[1]}; run: dvc repro -f evaluate export_onnx"
        )


def _sort(table: pd.DataFrame) -> pd.DataFrame:
    """`COLUMNS`, sorted by image."""
    return table.sort_values(["sha256", "id"])[COLUMNS].astype(str).reset_index(drop=True)
