"""The evaluation stage on photographs drawn on the spot: every figure against scikit-learn on a plain forward pass."""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from fieldguide.core.artifacts import Gallery
from fieldguide.core.errors import UserError
from fieldguide.core.images import decode
from fieldguide.core.manifest import DROPPED, LEAK, as_given, write_manifest
from fieldguide.core.params import Evaluate
from fieldguide.core.paths import (
    CALIBRATION,
    CHECKPOINT,
    COVERAGE_CSV,
    GALLERY_JSON,
    MANIFEST,
    PER_CLASS_CSV,
    PREDICTIONS_CSV,
    RAW,
    SUBMISSION_CSV,
    confusion_csv,
    stage_metrics,
)
from fieldguide.evaluation.answers import N_NOISE
from fieldguide.evaluation.ood import ood_images
from fieldguide.network.calibration import KnownScore, load_calibration
from fieldguide.network.checkpoint import Checkpoint, save_checkpoint
from fieldguide.network.models import Classifier, build
from stages import evaluate
from support.settings import PARAMS, TEXT

PX = 32
OUTPUTS = (CALIBRATION, stage_metrics("evaluate"), PREDICTIONS_CSV, PER_CLASS_CSV, COVERAGE_CSV, GALLERY_JSON)


class Case:
    """A project folder with photographs, manifest and checkpoint; the truth is the network's answer, now and then not."""

    def __init__(self, folder: Path, make_jpeg: Callable[..., bytes]) -> None:
        self.folder, self.make_jpeg = folder, make_jpeg
        (folder / RAW).mkdir(parents=True)
        self.params = TEXT

    def write(self, n_images: dict[str, int], n_classes: int, wrong_every: int = 4, missing: str = "") -> None:
        """`missing`: a split in which no image is of the last class."""
        torch.manual_seed(0)
        images = [self.make_jpeg(seed) for seed in range(sum(n_images.values()))]
        self.pixels = torch.from_numpy(np.stack([decode(image, PX) for image in images])).permute(0, 3, 1, 2)
        self.model = spread(build("cnn", n_classes), self.pixels)
        with torch.no_grad():
            answers = self.model(self.pixels / 255.0).argmax(1).numpy()
        split = np.repeat(list(n_images), list(n_images.values()))
        labels = (answers + (np.arange(len(answers)) % wrong_every == 1)) % n_classes
        labels[(split == missing) & (labels == n_classes - 1)] = 0
        (self.folder / RAW / "all.bin").write_bytes(b"".join(images))
        lengths = np.array([len(image) for image in images])
        self.table = pd.DataFrame(
            {
                "split": split,
                "label": pd.array(np.where(split == "unlabelled", -1, 10 * labels), dtype="Int64").astype("Int64"),
                "class_name": [f"species {label}" for label in labels],
                "id": [f"{where}/{number}.jpg" for number, where in enumerate(split)],
                "file": "all.bin",
                "offset": np.cumsum(lengths) - lengths,
                "length": lengths,
                "width": 64,
                "height": 64,
                "sha256": [hashlib.sha256(image).hexdigest() for image in images],
                "phash": "",
                "unit": range(len(images)),
                "use": True,
                "reason": "",
            }
        )
        unlabelled = self.table["split"] == "unlabelled"
        self.table.loc[unlabelled, "label"] = pd.NA
        self.table.loc[unlabelled, "class_name"] = ""
        names = tuple(f"species {k}" for k in range(n_classes))
        facts = Checkpoint("cnn", PX, names, tuple(10 * k for k in range(n_classes)), 1, "00")
        save_checkpoint(self.folder / CHECKPOINT, self.model, facts)

    def run(self, **changes: str) -> dict[str, dict[str, float]]:
        """metrics/evaluate.json of the stage with these values of `evaluate`."""
        write_manifest(self.table if "given" in self.table else as_given(self.table), MANIFEST)
        start, end = self.params.index("\nevaluate:"), self.params.index("\nexport:")
        section = self.params[start:end]
        for key, value in changes.items():
            (line,) = [line for line in section.splitlines() if line.startswith(f"  {key}: ")]
            section = section.replace(line, f"  {key}: {value}")
        Path("params.yaml").write_text(self.params[:start] + section + self.params[end:])
        evaluate.main()
        return json.loads(stage_metrics("evaluate").read_text())

    def rows(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.table["split"] == split)

    def logits(self, split: str, mirrored: bool = False) -> np.ndarray:
        pixels = self.pixels[self.rows(split)]
        with torch.no_grad():
            return self.model((pixels.flip(3) if mirrored else pixels) / 255.0).double().numpy()

    def targets(self, split: str) -> np.ndarray:
        return self.table["label"][self.rows(split)].to_numpy(dtype=int) // 10


def spread(model: Classifier, pixels: torch.Tensor) -> Classifier:
    """The network with a head whose answers differ from picture to picture."""
    with torch.no_grad():
        logits = model.eval()(pixels / 255.0)
        model.head.weight.mul_(2 / logits.std(0)[:, None])
        model.head.bias.sub_(logits.mean(0)).mul_(2 / logits.std(0))
    return model


class Untracked:
    """In the place of a run: seconds less for each test."""

    def log(self, metrics: dict, *files: Path) -> None:
        assert all(path.is_file() for path in files)

    def log_data(self, split: str, rows: pd.DataFrame) -> None:
        assert len(rows) > 0


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_jpeg: Callable[..., bytes]) -> Case:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "stage_run", lambda *given: nullcontext(Untracked()))
    return Case(tmp_path, make_jpeg)


SIZES = {"train": 40, "valid": 30, "test": 23}


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).softmax(1).numpy()


def test_metrics_are_scikit_learns_of_the_plain_network(case: Case) -> None:
    case.write(SIZES, 7)
    metrics = case.run()
    temperature = metrics["calibration"]["temperature"]
    for split, n in SIZES.items():
        logits, targets, found = case.logits(split), case.targets(split), metrics[split]
        predicted, labels = logits.argmax(1), np.arange(7)
        assert found["n"] == n
        assert found["accuracy"] == pytest.approx(accuracy_score(targets, predicted))
        assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
        for mean in ("macro", "weighted"):
            assert found[f"{mean}_f1"] == pytest.approx(f1_score(targets, predicted, average=mean, zero_division=0))
        assert found["loss"] == pytest.approx(log_loss(targets, softmax(logits / temperature), labels=labels), rel=1e-4)
        assert found["loss_uncalibrated"] == pytest.approx(log_loss(targets, softmax(logits), labels=labels), rel=1e-4)
    assert metrics["valid"]["loss"] < metrics["valid"]["loss_uncalibrated"]
    assert metrics["tta"] == {"forward_passes": 1}
    assert metrics["test_without_leaks"]["n"] == 23
    assert metrics["test_without_leaks"]["macro_f1"] == metrics["test"]["macro_f1"]


def test_predictions_name_every_image_of_valid_and_test_in_the_manifests_order(case: Case) -> None:
    case.write(SIZES, 7)
    metrics = case.run(sure_accuracy="0.9", known_score="energy", accept="0.8")
    table, calibration = pd.read_csv(PREDICTIONS_CSV), load_calibration(CALIBRATION)
    rows = np.concatenate([case.rows("valid"), case.rows("test")])
    assert table["id"].tolist() == case.table["id"][rows].tolist()
    assert table["split"].tolist() == case.table["split"][rows].tolist()
    assert table["sha256"].tolist() == case.table["sha256"][rows].tolist()
    assert table["truth"].tolist() == case.table["class_name"][rows].tolist()
    logits = np.concatenate([case.logits("valid"), case.logits("test")])
    probabilities = softmax(logits / calibration.temperature)
    best = np.argsort(-probabilities, axis=1)[:, :5]
    for place in range(5):
        assert table[f"answer_{place + 1}"].tolist() == [f"species {k}" for k in best[:, place]]
        expected = np.take_along_axis(probabilities, best, 1)[:, place]
        np.testing.assert_allclose(table[f"probability_{place + 1}"], expected, atol=1e-5)
    np.testing.assert_allclose(table["known_score"], torch.from_numpy(logits).logsumexp(1), rtol=1e-4)
    unknown = table["known_score"] < calibration.unknown_below
    unsure = table["probability_1"] < calibration.unsure_below
    assert table["verdict"].tolist() == np.where(unknown, "unknown", np.where(unsure, "unsure", "sure")).tolist()
    for split in ("valid", "test"):
        part = table[table["split"] == split]
        sure = part[part["verdict"] == "sure"]
        assert metrics[split]["known"] == pytest.approx((part["verdict"] != "unknown").mean())
        assert metrics[split]["sure"] == pytest.approx(len(sure) / len(part))
        assert metrics[split]["accuracy_when_sure"] == pytest.approx((sure["truth"] == sure["answer_1"]).mean())
    assert metrics["valid"]["known"] == 0.8


def test_tables_per_class_and_over_coverage(case: Case) -> None:
    case.write(SIZES, 7)
    metrics = case.run()
    per_class = pd.read_csv(PER_CLASS_CSV)
    for split in ("valid", "test"):
        part = per_class[per_class["split"] == split]
        assert part["class_name"].tolist() == [f"species {k}" for k in range(7)]
        assert part["support"].tolist() == np.bincount(case.targets(split), minlength=7).tolist()
        expected = f1_score(case.targets(split), case.logits(split).argmax(1), average=None, labels=range(7), zero_division=0)
        expected[part["support"] == 0] = np.nan  # not measured
        assert part["f1"].tolist() == pytest.approx(expected, nan_ok=True)
    coverage = pd.read_csv(COVERAGE_CSV).set_index("coverage")
    for split in ("valid", "test"):
        assert coverage.loc[1.0, split] == pytest.approx(metrics[split]["accuracy"])
        assert coverage.loc[0.8, split] == pytest.approx(metrics[split]["accuracy_at_coverage_80"])


@pytest.mark.parametrize("known_score", ["cosine", "whitened_cosine", "mahalanobis"])
def test_class_means_are_those_of_train_and_scores_those_of_the_saved_calibration(case: Case, known_score: str) -> None:
    case.write(SIZES, 4)
    case.run(known_score=known_score)
    calibration = load_calibration(CALIBRATION)
    with torch.no_grad():
        scaled = (case.pixels / 255.0 - case.model.pixel_mean) / case.model.pixel_std
        embeddings = case.model.features(scaled)
    torch.testing.assert_close(calibration.tensors["centre"], embeddings[case.rows("train")].mean(0), rtol=1e-3, atol=1e-5)
    held_out = np.concatenate([case.rows("valid"), case.rows("test")])
    expected = KnownScore(calibration)(torch.empty(0), embeddings[held_out])
    np.testing.assert_allclose(pd.read_csv(PREDICTIONS_CSV)["known_score"], expected, rtol=1e-3, atol=1e-3)


def test_strangers_are_refused_by_the_saved_calibration(case: Case) -> None:
    case.write(SIZES, 5)
    metrics = case.run(known_score="energy")
    calibration = load_calibration(CALIBRATION)
    known = torch.from_numpy(case.logits("test")).logsumexp(1).numpy()
    with torch.no_grad():
        strange = {kind: case.model(images / 255.0).logsumexp(1).numpy() for kind, images in ood_images(PX, N_NOISE).items()}
    assert set(metrics["strangers"]) == set(strange)
    for kind, scores in strange.items():
        found = metrics["strangers"][kind]
        assert found["n"] == len(scores) == 100
        assert found["refused"] == pytest.approx((scores < calibration.unknown_below).mean())
        truth = np.repeat([1, 0], [len(known), len(scores)])
        assert found["auroc"] == pytest.approx(roc_auc_score(truth, np.concatenate([known, scores])), abs=1e-4)


@pytest.mark.slow
def test_nothing_is_fitted_on_test(case: Case) -> None:
    case.write(SIZES, 5)
    case.run()
    fitted = CALIBRATION.read_bytes()
    shift = (case.table["split"] == "test").to_numpy()
    names = case.table.drop_duplicates("label").set_index("label")["class_name"]
    case.table.loc[shift, "label"] = (case.table.loc[shift, "label"] + 10) % 50
    case.table.loc[shift, "class_name"] = case.table.loc[shift, "label"].map(names)
    case.table.loc[case.rows("test")[3:], "use"] = False
    case.run()
    assert CALIBRATION.read_bytes() == fitted


@pytest.mark.slow
@pytest.mark.parametrize("tta", ["none", "mirror"])
def test_the_same_bytes_come_out_again_whatever_the_number_of_workers(
    case: Case, tta: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.write(SIZES, 6)
    contents = []
    for n_workers in (1, 3):
        monkeypatch.setattr("fieldguide.core.params.Runtime.n_workers", n_workers)
        case.run(tta=tta)
        contents.append({path: path.read_bytes() for path in OUTPUTS})
    assert contents[0] == contents[1]


@pytest.mark.slow
def test_mirror_takes_the_mean_over_both_views_and_states_gain_and_cost(case: Case) -> None:
    case.write(SIZES, 7)
    passes: list[int] = []
    original = torch.nn.Conv2d.forward

    def counted(layer: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        if layer.in_channels == 3:
            passes.append(len(images))
        return original(layer, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Conv2d, "forward", counted)
        patch.setattr(
            evaluate, "build_gallery", lambda *_: Gallery(split="test", wrong=[], right=[], pairs=[])
        )  # decodes again
        metrics = case.run(tta="mirror")
    n_passes = 2 * sum(-(-n // 64) for n in (*SIZES.values(), *[N_NOISE] * 3))
    assert passes == [64] * n_passes  # an incomplete batch is filled up
    gains = {}
    for split in SIZES:
        mean = (case.logits(split) + case.logits(split, mirrored=True)) / 2
        accuracy = accuracy_score(case.targets(split), mean.argmax(1))
        assert metrics[split]["accuracy"] == pytest.approx(accuracy)
        gains[f"{split}_accuracy_gain"] = accuracy - accuracy_score(case.targets(split), case.logits(split).argmax(1))
    assert metrics["tta"] == pytest.approx({"forward_passes": 2} | gains)
    assert load_calibration(CALIBRATION).tta == "mirror"


def test_leaked_test_images_are_left_out_of_the_figures_without_leaks(case: Case) -> None:
    case.write(SIZES, 4)
    case.table.loc[case.rows("test")[::3], "reason"] = LEAK + "same photograph as train train/0.jpg"
    metrics = case.run()
    clean = np.arange(23) % 3 != 0
    right = (case.logits("test").argmax(1) == case.targets("test"))[clean]
    assert metrics["test_without_leaks"]["n"] == clean.sum()
    assert metrics["test_without_leaks"]["accuracy"] == pytest.approx(right.mean())
    assert metrics["test"]["n"] == 23


def test_corrections_leave_the_headline_as_labelled_and_stand_beside_it(case: Case) -> None:
    case.write(SIZES, 4)
    without = case.run()
    assert "as_corrected" not in without["test"] and "corrected" not in pd.read_csv(PREDICTIONS_CSV)
    case.table = as_given(case.table)
    given, test, valid = case.targets("test"), case.rows("test"), case.rows("valid")
    predicted = case.logits("test").argmax(1)
    dropped, relabelled = test[::5], test[1::5]
    case.table.loc[dropped, ["use", "decision", "reason"]] = [False, "drop", f"{DROPPED} (blurred)"]
    case.table.loc[relabelled, "decision"] = "relabel"
    case.table.loc[relabelled, "label"] = 10 * predicted[1::5]  # every one of them becomes right
    case.table.loc[relabelled, "class_name"] = [f"species {k}" for k in predicted[1::5]]
    case.table.loc[valid[::7], ["use", "decision", "reason"]] = [False, "drop", DROPPED]
    metrics = case.run()
    kept = np.arange(len(test)) % 5 != 0
    truth = np.where(np.arange(len(test)) % 5 == 1, predicted, given)[kept]
    for split in ("valid", "test"):
        for key in ("accuracy", "macro_f1", "n", "top5_accuracy"):
            assert metrics[split][key] == without[split][key]
    corrected = metrics["test"]["as_corrected"]
    assert corrected["n"] == kept.sum()
    assert corrected["accuracy"] == pytest.approx(accuracy_score(truth, predicted[kept]))
    assert corrected["macro_f1"] == pytest.approx(f1_score(truth, predicted[kept], average="macro"))
    assert corrected["accuracy_low"] < corrected["accuracy"] < corrected["accuracy_high"]
    assert metrics["valid"]["as_corrected"]["n"] == len(valid) - len(valid[::7])
    assert "as_corrected" not in metrics["train"]
    table = pd.read_csv(PREDICTIONS_CSV, keep_default_na=False)
    table = table[table["split"] == "test"]
    assert table["truth"].tolist() == [f"species {k}" for k in given]
    assert table["corrected"].eq("").tolist() == (~kept).tolist()
    assert table["corrected"][kept].tolist() == [f"species {k}" for k in truth]
    assert metrics["calibration"] != without["calibration"]  # fitted on valid without the dropped images


def test_where_every_test_image_is_a_leak_there_is_no_accuracy_without(case: Case) -> None:
    case.write(SIZES, 4)
    case.table.loc[case.rows("test"), "reason"] = LEAK + "same photograph as train train/0.jpg"
    assert case.run()["test_without_leaks"] == {"accuracy": None, "n": 0}


@pytest.mark.parametrize("missing", ["train", "valid", "test"])
def test_a_class_without_images_in_a_split(case: Case, missing: str) -> None:
    case.write(SIZES, 3, missing=missing)
    assert 2 not in case.targets(missing)
    metrics = case.run()
    logits, targets = case.logits(missing), case.targets(missing)
    expected = f1_score(targets, logits.argmax(1), labels=[0, 1], average="macro")
    assert metrics[missing]["macro_f1"] == pytest.approx(expected)
    assert (metrics[missing]["classes"], metrics["classes"]) == (2, 3)
    per_class = pd.read_csv(PER_CLASS_CSV).set_index(["split", "class_name"])
    if missing != "train":
        assert per_class.loc[(missing, "species 2"), "support"] == 0
    directions = load_calibration(CALIBRATION).tensors["directions"]
    assert directions.shape[1] == (2 if missing == "train" else 3)


def test_a_test_split_without_labels_gives_a_submission_and_valid_takes_its_place(case: Case) -> None:
    case.write({"train": 40, "valid": 30, "unlabelled": 9}, 5)
    metrics = case.run()
    assert "test" not in metrics
    submission = pd.read_csv(SUBMISSION_CSV)
    assert submission["id"].tolist() == case.table["id"][case.rows("unlabelled")].tolist()
    assert submission["label"].tolist() == (10 * case.logits("unlabelled").argmax(1)).tolist()
    assert set(pd.read_csv(PREDICTIONS_CSV)["split"]) == {"valid"}
    coverage = pd.read_csv(COVERAGE_CSV)
    assert coverage["test"].isna().all()
    assert coverage["valid"].notna().all()
    assert len(pd.read_csv(confusion_csv("valid"))) == 30
    assert not len(pd.read_csv(confusion_csv("test")))


@pytest.mark.slow
@pytest.mark.parametrize("tta", ["none", "mirror"])
def test_two_classes_and_one_image_in_each_split(case: Case, tta: str) -> None:
    case.write({"train": 1, "valid": 1, "test": 1}, 2, wrong_every=1_000)
    metrics = case.run(tta=tta)
    for split in ("train", "valid", "test"):
        assert metrics[split]["n"] == 1
        assert metrics[split]["accuracy"] in (0, 1)
        assert metrics[split]["top5_accuracy"] == 1
    table = pd.read_csv(PREDICTIONS_CSV)
    assert table[["answer_1", "answer_2", "probability_2"]].notna().all(axis=None)
    assert table[["answer_3", "answer_5", "probability_3"]].isna().all(axis=None)
    assert metrics["valid"]["known"] == 1


def test_an_image_that_was_changed_after_the_check_is_one_line_and_leaves_no_results(case: Case) -> None:
    case.write(SIZES, 4)
    case.table.loc[case.rows("valid")[5], "sha256"] = "0" * 64
    with pytest.raises(UserError, match=r"\(valid/45\.jpg\): changed since the split check"):
        case.run()
    assert not any(path.exists() for path in OUTPUTS)


def test_without_images_to_calibrate_on_the_stage_says_so(case: Case) -> None:
    case.write(SIZES, 4)
    case.table.loc[case.rows("valid"), "use"] = False
    with pytest.raises(UserError, match=r"^data/manifest.csv: split valid has no image in use; "):
        case.run()


@pytest.mark.parametrize(
    ("key", "value"), [("tta", "rotate"), ("known_score", "odin"), ("accept", 0.0), ("sure_accuracy", 1.1)]
)
def test_params_outside_their_range_are_refused(key: str, value: object) -> None:
    settings = PARAMS.evaluate.model_dump()
    with pytest.raises(ValueError, match=key):
        Evaluate(**(settings | {key: value}))
