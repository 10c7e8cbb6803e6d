"""Experiments of a cross-validation joined: only what belongs together, each image once, the contradicted ones first."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fieldguide.commands.folds import Fold, check_equal, join, measure, pick, print_summary, read_fold
from fieldguide.core.artifacts import FoldsMetrics
from fieldguide.core.errors import UserError
from fieldguide.tracking.experiments import Experiment

STAGES = {  # of dvc.lock
    "download": {
        "cmd": "python -m stages.download",
        "deps": [{"path": "stages/download.py", "md5": "0" * 32}],
        "params": {"params.yaml": {"data": {"dataset": "sample"}}},
        "outs": [{"path": "data/raw", "md5": "1" * 32}],
    },
    "split_check": {
        "cmd": "python -m stages.split_check",
        "deps": [{"path": "data/raw", "md5": "1" * 32}, {"path": "data/corrections.csv", "md5": "2" * 32}],
        "params": {"params.yaml": {"split_check": {"folds": 2, "fold": 0, "seed": 1}}},
        "outs": [{"path": "data/manifest.csv", "md5": "3" * 32}],
    },
    "evaluate": {
        "cmd": "python -m stages.evaluate",
        "deps": [{"path": "data/manifest.csv", "md5": "3" * 32}, {"path": "fieldguide/evaluation", "md5": "4" * 32 + ".dir"}],
        "params": {"params.yaml": {"evaluate": {"tta": "none"}}},
        "outs": [{"path": "metrics/predictions.csv", "md5": "5" * 32}],
    },
    "benchmark": {"cmd": "b", "deps": [{"path": "x", "md5": "6" * 32}], "params": {"params.yaml": {"benchmark": {"n": 1}}}},
}
PARAMS = {"split_check.folds": 2, "split_check.fold": 0}


def fold(number: int, name: str = "", **changes: str) -> Fold:
    """A fold; changes: other values of dvc.lock, by `stage_key`."""
    stages = copy.deepcopy(STAGES)
    stages["split_check"]["params"]["params.yaml"]["split_check"]["fold"] = number
    stages["evaluate"]["outs"][0]["md5"] = f"{number}" * 32
    for place, value in changes.items():
        if place == "corrections":
            stages["split_check"]["deps"][1]["md5"] = value
        elif place == "code":
            stages["evaluate"]["deps"][1]["md5"] = value
        else:
            stages["split_check"]["params"]["params.yaml"]["split_check"][place] = value
    params = PARAMS | {"split_check.fold": number}
    found = read_fold(Experiment(name or f"fold-{number}", "c0ffee", "success", "a" * 32, params), stages)
    assert found
    return found


def predictions(*rows: tuple[str, str, float, str, float], number: int = 0) -> pd.DataFrame:
    """Id, truth, and the two best answers of each image with their probabilities: truth, first, its probability, …"""
    table = pd.DataFrame(rows, columns=["id", "truth", "probability_1", "answer_1", "probability_2"])
    other = np.where(table["answer_1"] == "A", "B", "A")
    empty = {f"answer_{k}": "" for k in (3, 4, 5)} | {f"probability_{k}": np.nan for k in (3, 4, 5)}
    table = table.assign(answer_2=other, sha256=table["id"] + " bytes", verdict="sure", **empty)
    table.insert(0, "fold", number)
    table.insert(1, "experiment", f"fold-{number}")
    return table


FIRST = predictions(("1", "A", 0.9, "A", 0.1), ("2", "A", 0.8, "B", 0.2), ("3", "B", 0.7, "B", 0.3))
SECOND = predictions(("4", "B", 0.95, "A", 0.05), ("5", "A", 0.6, "A", 0.4), number=1)


def test_a_fold_depends_on_all_stages_before_its_predictions_but_not_on_its_number() -> None:
    one = fold(0)
    assert (one.number, one.n_folds, one.predictions_md5) == (0, 2, "0" * 32)
    assert one.facts == fold(1).facts
    assert {"data.dataset", "split_check.seed", "evaluate.tta", "dep data/corrections.csv", "dep stages/download.py"} <= set(
        one.facts
    )
    assert not {"dep data/raw", "dep x", "benchmark.n", "split_check.fold"} & set(one.facts)


@pytest.mark.parametrize(
    "changes",
    [{"params": {}}, {"checkpoint": ""}, {"stale": ("evaluate",)}],
    ids=["no folds", "not trained", "not evaluated"],
)
def test_other_experiments_are_no_folds(changes: dict) -> None:
    experiment = Experiment("fold-0", "c0ffee", "success", "a" * 32, PARAMS)
    assert read_fold(experiment, STAGES) and not read_fold(replace(experiment, **changes), STAGES)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 2}, r"split_check\.seed is 1 in fold-0; 2 in other"),
        ({"folds": 5}, r"split_check\.folds is 2 in fold-0; 5 in other"),
        ({"corrections": "f" * 32}, r"data/corrections\.csv is 22222222 in fold-0; ffffffff in other"),
        ({"code": "e" * 32}, r"fieldguide/evaluation is 44444444 in fold-0; eeeeeeee in other"),
    ],
)
def test_folds_of_different_params_data_or_code_are_refused(changes: dict, said: str) -> None:
    check_equal([fold(0), fold(1)])
    with pytest.raises(UserError, match=f"^the folds are not of one cross-validation: {said}; name the experiments to join"):
        check_equal([fold(0), fold(1, "other", **changes)])


def test_folds_that_are_there_twice_are_named() -> None:
    chosen, doubles = pick([fold(1), fold(0), fold(1, "again")])
    assert [one.experiment.name for one in chosen] == ["fold-0", "fold-1"]
    assert doubles == ["fold 1 is double: fold-1 counts, not again (same predictions)"]


def test_images_are_in_the_order_of_contradiction() -> None:
    table = join([FIRST, SECOND])
    assert table["id"].tolist() == ["4", "2", "5", "3", "1"]
    assert table["contradiction"].tolist() == [0.9, 0.6, -0.2, -0.4, -0.8]
    assert table["probability_of_truth"].tolist() == [0.05, 0.2, 0.6, 0.7, 0.9]
    assert table["fold"].tolist() == [1, 0, 1, 0, 0]


def test_an_image_in_two_folds_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^1: is in test of the folds 0 \(fold-0\), 1 \(fold-1\); run the folds again$"):
        join([FIRST, predictions(("1", "A", 0.9, "A", 0.1), number=1)])


def test_a_truth_beyond_the_answers_has_no_probability() -> None:
    table = join([predictions(("1", "C", 0.9, "A", 0.1))])
    assert table.loc[0, ["probability_of_truth", "contradiction"]].tolist() == [0.0, 0.9]


def test_figures_are_of_all_images_and_of_each_fold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = join([FIRST, SECOND])
    metrics = measure(table, [fold(0), fold(1)])
    assert (metrics.folds, metrics.missing, metrics.n, metrics.accuracy) == (2, [], 5, 0.6)
    assert metrics.accuracy_low < 0.6 < metrics.accuracy_high
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert [(score.fold, score.n, score.accuracy) for score in metrics.per_fold] == [(0, 3, pytest.approx(2 / 3)), (1, 2, 0.5)]
    assert [(one.class_name, one.n) for one in metrics.worst_classes] == [("B", 2), ("A", 3)]
    assert [pair.as_dict() for pair in metrics.confused_pairs] == [
        {"truth": "A", "predicted": "B", "n": 1, "n_truth": 3},
        {"truth": "B", "predicted": "A", "n": 1, "n_truth": 2},
    ]
    metrics.write(tmp_path / "folds.json")
    assert FoldsMetrics.read(tmp_path / "folds.json") == metrics
    assert "as_corrected" not in (tmp_path / "folds.json").read_text()
    print_summary(metrics, table, ["fold 1 is double"])
    output, warnings = capsys.readouterr()
    assert "2 of 2 folds: accuracy 60.00%" in output
    assert "  0.90  4: B, predicted A" in output
    assert warnings == "warning: fold 1 is double\n"


def test_a_missing_fold_is_named_with_the_command_that_runs_it(capsys: pytest.CaptureFixture[str]) -> None:
    table = join([FIRST])
    metrics = measure(table, [fold(0)])
    assert metrics.missing == [1]
    print_summary(metrics, table, [])
    said = "missing: fold 1 of 2; run: dvc exp run --queue -S 'split_check.folds=2' -S 'split_check.fold=1'"
    assert said in capsys.readouterr().err


def test_corrected_labels_have_figures_of_their_own() -> None:
    table = join([FIRST.assign(corrected=["A", "B", ""]), SECOND])  # no image of the second fold is corrected
    metrics = measure(table, [fold(0), fold(1)])
    assert metrics.accuracy == 0.6
    assert metrics.as_corrected and (metrics.as_corrected.n, metrics.as_corrected.accuracy) == (4, 0.75)
