"""Which model is in use: a run challenges the present champion on the same test images, and takes its place if it wins.

A challenger is picked by its accuracy on valid, never on test. It wins when it is better beyond chance: the 95 % interval of
the difference of both accuracies, on the same images, lies above 0. The first champion has nobody to beat.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from fieldguide.core.errors import UserError
from fieldguide.core.files import file_hash
from fieldguide.core.manifest import read_manifest, rows_of
from fieldguide.core.paths import MANIFEST, RAW
from fieldguide.evaluation.metrics import accuracy_interval, paired_difference
from fieldguide.onnx.classifier import OnnxClassifier
from fieldguide.onnx.proof import probabilities_alone
from fieldguide.tracking.registry import CHAMPION, NAME, SCHEME, ExportedRun, Registry, Version, opened
from fieldguide.tracking.store import CHECKPOINT_TAG, DATA_TAG, EXPERIMENT_TAG

CHOSEN_BY = ("evaluate.valid.accuracy", "evaluate.valid.loss")  # the second decides between equals
COPIED_TAGS = (EXPERIMENT_TAG, "mlflow.source.git.commit", CHECKPOINT_TAG, DATA_TAG, "fieldguide.lock_sha256")
COLUMNS = ["sha256", "truth", "answer_1"]
SHORTEST_ID = 7  # signs of a run's id that name it


@dataclass(frozen=True)
class Measured:
    """What a model says of each image of a split; `table` has `COLUMNS`, in an order of the images' own."""

    split: str
    table: pd.DataFrame

    @property
    def right(self) -> np.ndarray:
        """bool `[N]`."""
        return (self.table["answer_1"] == self.table["truth"]).to_numpy(dtype=bool)

    def is_on(self, other: "Measured") -> bool:
        """Whether both are of the same images, by their content, under the same names."""
        return self.table[COLUMNS[:2]].equals(other.table[COLUMNS[:2]])

    def numbers(self) -> dict[str, float]:
        """Accuracy, its 95 % interval and the number of images, under the names of metrics/evaluate.json."""
        low, high = accuracy_interval(int(self.right.sum()), len(self.right))
        return {"accuracy": float(self.right.mean()), "accuracy_low": low, "accuracy_high": high, "n": len(self.right)}

    def words(self) -> str:
        found = self.numbers()
        return (
            f"{self.split} accuracy {found['accuracy']:.2%}, 95 % interval {found['accuracy_low']:.1%} to"
            f" {found['accuracy_high']:.1%} (n={found['n']})"
        )


def challenge(name: str | None, force: bool) -> bool:
    """Makes the model of a run, or of the best one, champion if it wins, and says so; whether it is the champion now."""
    with opened() as registry, TemporaryDirectory() as folder:
        challenger = picked(registry.exported(), name)
        measured = of_run(registry, challenger.run.info.run_id, Path(folder))
        check_model(registry.model_file(challenger.model), measured, challenger.name)
        print(f"challenger {challenger.name}: {measured.words()}")
        present = registry.champion()
        reason = "the first champion"
        if present and present.md5 == challenger.md5:
            print(f"nothing to do: it is the champion, version {present.number} of {NAME}")
            return True
        if present:
            wins, reason = contest(registry, challenger, measured, present, force, Path(folder))
            if not wins and not force:
                print(f"not promoted: {reason}; the champion stays version {present.number} (--force promotes in spite of it)")
                return False
            reason = reason if wins else f"by force, {reason}"
        told = {key: value for key in COPIED_TAGS if (value := challenger.run.data.tags.get(key))}
        told |= {f"evaluate.{measured.split}.{key}": str(value) for key, value in measured.numbers().items()}
        version = registry.crown(challenger, told | {"fieldguide.promoted": reason})
        print(f"promoted: {reason}; {SCHEME}{NAME}@{CHAMPION} is version {version.number}")
        return True


def picked(exported: list[ExportedRun], name: str | None) -> ExportedRun:
    """The latest run that is called so, or the best on valid of those on the data of the latest run."""
    if not exported:
        raise UserError("MLflow: no run has an exported model; make one with: dvc repro")
    if name:
        named = [one for one in exported if name in (one.run.info.run_name, one.run.data.tags.get(EXPERIMENT_TAG))]
        named = named or [one for one in exported if len(name) >= SHORTEST_ID and one.run.info.run_id.startswith(name)]
        if not named:
            latest = ", ".join(one.run.info.run_name for one in exported[:5])
            raise UserError(f"{name}: no run of this name or id has an exported model; the latest that have: {latest}")
        return named[0]
    data = exported[0].run.data.tags.get(DATA_TAG)
    rivals = [
        one for one in exported if one.run.data.tags.get(DATA_TAG) == data and set(CHOSEN_BY) <= set(one.run.data.metrics)
    ]
    if not rivals:
        raise UserError(f"MLflow: no run on the latest data has {CHOSEN_BY[0]}; run: dvc repro evaluate, or name a run")
    accuracy, loss = CHOSEN_BY
    best = max(rivals, key=lambda one: (one.run.data.metrics[accuracy], -one.run.data.metrics[loss]))
    print(f"{best.run.info.run_name} has the best {accuracy}, {best.run.data.metrics[accuracy]:.2%}, of {len(rivals)} runs")
    return best


def contest(
    registry: Registry, challenger: ExportedRun, measured: Measured, present: Version, force: bool, folder: Path
) -> tuple[bool, str]:
    """Whether the challenger wins against the present champion, and the reason in words.

    Raises `UserError` where both cannot be compared, unless by `force`.
    """
    try:
        other = of_champion(registry, challenger, measured, present, folder)
    except UserError as error:
        if not force:
            raise UserError(f"{error}; or promote without a comparison: --force") from error
        return False, "not compared with the champion"
    print(f"champion   version {present.number}: {other.words()}")
    difference, low, high = paired_difference(measured.right, other.right)
    n_gained, n_lost = int((measured.right & ~other.right).sum()), int((~measured.right & other.right).sum())
    interval = f"{100 * difference:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
    print(f"difference {interval}: {n_gained} images right that the champion has wrong, {n_lost} the other way round")
    if low > 0:
        return True, f"better than version {present.number} beyond chance ({interval})"
    return False, f"{'worse than' if high < 0 else 'not better beyond chance than'} version {present.number} ({interval})"


def of_champion(registry: Registry, challenger: ExportedRun, measured: Measured, present: Version, folder: Path) -> Measured:
    """What the champion says of the images on which the challenger was measured: from its own run, or measured here."""
    try:
        other = of_run(registry, present.run_id, folder / "champion")
        if other.is_on(measured):
            return other
        fault = f"its {len(other.table)} images of {other.split} are not the challenger's {len(measured.table)}"
    except UserError as error:
        fault = str(error)
    here = file_hash(MANIFEST, "md5") if MANIFEST.exists() else ""
    if here != challenger.run.data.tags.get(DATA_TAG):
        raise UserError(
            f"champion, version {present.number}: {fault}, and {MANIFEST} is not of the challenger's data, on which it could be"
            " measured here; bring them with: dvc exp apply, or dvc checkout"
        )
    file = registry.file(f"{SCHEME}{NAME}/{present.number}")
    rows, champion = rows_of(read_manifest(MANIFEST), measured.split), OnnxClassifier(file)
    known = OnnxClassifier(registry.model_file(challenger.model)).class_names
    if lost := [name for name in champion.class_names if name not in known]:
        more = f" and {len(lost) - 1} more of its classes" if lost[1:] else ""
        raise UserError(f"champion, version {present.number}: {fault}; the challenger does not know {lost[0]}{more}")
    print(f"champion   measured here: {fault}")
    places = list(rows[["file", "offset", "length"]].itertuples(index=False, name=None))
    answers = np.array(champion.class_names)[probabilities_alone(file, RAW, places)[-1].argmax(axis=1)]
    table = pd.DataFrame({"id": rows["id"], "sha256": rows["sha256"], "truth": rows["class_name"], "answer_1": answers})
    return Measured(measured.split, _ordered(table))


def of_run(registry: Registry, run_id: str, folder: Path) -> Measured:
    """From the predictions that evaluate logged, on test, or on valid where test has no labels; raises `UserError`."""
    folder.mkdir(exist_ok=True)
    table = pd.read_csv(registry.predictions(run_id, folder), dtype=str, keep_default_na=False)
    if not set(COLUMNS) <= set(table.columns):
        raise UserError(f"run {run_id}: its predictions lack {', '.join(sorted(set(COLUMNS) - set(table.columns)))}")
    split = "test" if "test" in set(table["split"]) else "valid"
    return Measured(split, _ordered(table[table["split"] == split]))


def check_model(model: Path, measured: Measured, name: str) -> None:
    """Raises `UserError` unless the file was exported from the evaluation of which the predictions are."""
    evaluated = OnnxClassifier(model).metadata["evaluate"]
    n_right = round(evaluated["accuracy"] * evaluated["n"])
    if (evaluated["split"], evaluated["n"], n_right) != (measured.split, len(measured.right), measured.right.sum()):
        raise UserError(
            f"{name}: its model tells of {n_right} of {evaluated['n']} {evaluated['split']} images right, its predictions of"
            f" {measured.right.sum()} of {len(measured.right)} {measured.split} images; run: dvc repro -f evaluate export_onnx"
        )


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """`COLUMNS` in an order that depends on the images alone."""
    return table.sort_values(["sha256", "id"])[COLUMNS].astype(str).reset_index(drop=True)
