"""Experiments and runs side by side: which belongs to which, what one has and the other lacks, and how it is printed."""

import csv
import io
import json
from dataclasses import replace

import pytest

from fieldguide.commands import runs
from fieldguide.commands.runs import Experiment, TrackedRun, compare, match_runs

PARAMS = {"train.lr": 0.1, "augment.rotation_degrees": 20, "benchmark.batch_sizes": [1, 8], "evaluate.tta": "none"}
METRICS = {"train.valid.loss": 0.5, "evaluate.test.accuracy": 0.75}
EXPERIMENT = Experiment("brave-owl", "c0ffee", "success", "a" * 32, PARAMS, METRICS)
RUN = TrackedRun(
    "1" * 32,
    "brave-owl",
    "FINISHED",
    "brave-owl",
    "a" * 32,
    {"train.lr": "0.1", "augment.rotation_degrees": "20.0", "benchmark.batch_sizes": "[1, 8]", "evaluate.tta": "none"},
    METRICS | {"train.loss": 0.4, "valid.loss": 0.5, "system/cpu_utilization_percentage": 99.0},
)


def test_what_both_have_is_the_same_whatever_the_form_of_its_numbers() -> None:
    (row,) = match_runs([EXPERIMENT], [RUN])
    assert (row["mlflow_lacks"], row["dvc_lacks"], row["differ"]) == ([], [], [])


@pytest.mark.parametrize(
    ("experiment", "run", "expected"),
    [
        ({"metrics": METRICS | {"evaluate.test.ece": 0.1}}, {}, (["evaluate.test.ece"], [], [])),
        ({"params": PARAMS | {"train.ema": 0.9}}, {}, (["train.ema"], [], [])),
        ({}, {"metrics": RUN.metrics | {"evaluate.valid.n": 3.0}}, ([], ["evaluate.valid.n"], [])),
        ({"params": PARAMS | {"train.lr": 0.2}}, {}, ([], [], ["train.lr"])),
        ({"metrics": METRICS | {"evaluate.test.accuracy": 0.5}}, {}, ([], [], ["evaluate.test.accuracy"])),
    ],
)
def test_what_one_has_and_the_other_lacks_is_named(experiment: dict, run: dict, expected: tuple) -> None:
    (row,) = match_runs([replace(EXPERIMENT, **experiment)], [replace(RUN, **run)])
    assert (row["mlflow_lacks"], row["dvc_lacks"], row["differ"]) == expected


def test_one_without_the_other_has_a_row_of_its_own() -> None:
    other = replace(RUN, run_id="2" * 32, name="gone", experiment="gone", checkpoint="b" * 32)
    alone, left = match_runs([EXPERIMENT], [other])
    assert (alone["run"], alone["mlflow_lacks"], alone["dvc_lacks"]) == (None, ["run"], [])
    assert (left["experiment"], left["mlflow_lacks"], left["dvc_lacks"]) == (None, [], ["experiment"])


def test_a_second_training_that_made_the_same_checkpoint_says_so() -> None:
    row, second = match_runs([EXPERIMENT], [RUN, replace(RUN, run_id="2" * 32, name="c0ffee", experiment="")])
    assert (row["again"], second["again"], second["dvc_lacks"]) == ("", "brave-owl", [])
    assert runs._remarks(second) == "same checkpoint as brave-owl"


def test_a_training_from_the_cache_finds_the_run_that_made_its_checkpoint_rather_one_of_its_name() -> None:
    earlier = replace(RUN, run_id="2" * 32, name="first", experiment="first")
    of_its_name = replace(RUN, run_id="3" * 32, checkpoint="c" * 32)  # made something else under the same name
    assert match_runs([EXPERIMENT], [of_its_name, earlier])[0]["run_id"] == earlier.run_id
    assert match_runs([EXPERIMENT], [earlier, RUN])[0]["run_id"] == RUN.run_id
    both = [earlier, replace(earlier, run_id="4" * 32)]  # the latest stands first
    assert match_runs([EXPERIMENT], both)[0]["run_id"] == earlier.run_id


@pytest.mark.parametrize("state", ["queued", "running", "failed"])
def test_an_experiment_without_a_checkpoint_is_found_by_its_name(state: str) -> None:
    begun = Experiment("brave-owl", "c0ffee", state, params=PARAMS)
    assert match_runs([begun], [replace(RUN, checkpoint="")])[0]["run_id"] == RUN.run_id
    assert match_runs([begun], [replace(RUN, name="x", experiment="x")])[0]["run"] is None


def test_two_experiments_with_one_checkpoint_see_it_as_their_own_stages_measured_it() -> None:
    first = TrackedRun(
        "5" * 32, "evaluate", "FINISHED", params={"evaluate.tta": "none"}, metrics={"evaluate.test.accuracy": 0.75}
    )
    second = TrackedRun(
        "6" * 32, "evaluate", "FINISHED", params={"evaluate.tta": "mirror"}, metrics={"evaluate.test.accuracy": 1.0}
    )
    run = replace(RUN, metrics=RUN.metrics | second.metrics, children=(first, second))  # on which the later one left its values
    mirrored = replace(
        EXPERIMENT,
        name="mirrored",
        params=PARAMS | {"evaluate.tta": "mirror"},
        metrics=METRICS | {"evaluate.test.accuracy": 1.0},
    )
    for row in match_runs([EXPERIMENT, mirrored], [run]):
        assert (row["run_id"], row["mlflow_lacks"], row["differ"]) == (RUN.run_id, [], [])


LOCK = {
    "split_check": {"outs": [{"path": "data/manifest.csv", "md5": "m1"}]},
    "train": {"deps": [{"path": "data/manifest.csv", "md5": "m1"}], "outs": [{"path": "models/model.safetensors", "md5": "a"}]},
    "evaluate": {"deps": [{"path": "models/model.safetensors", "md5": "b"}, {"path": "fieldguide/core/files.py", "md5": "x"}]},
}


def test_metrics_of_another_checkpoint_that_a_revision_inherited_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "locked_stages", lambda rev: LOCK)
    data = {
        "params": {"params.yaml": {"data": {"train": {"lr": 0.1}}}},
        "metrics": {
            "metrics/train.json": {"data": {"valid": {"loss": 0.5}, "note": "no number"}},
            "metrics/evaluate.json": {"data": {"test": {"accuracy": 1.0}}},
        },
    }
    found = runs._experiment("brave-owl", {"rev": "c0ffee", "data": data}, "success")
    assert found == Experiment(
        "brave-owl", "c0ffee", "success", "a", {"train.lr": 0.1}, {"train.valid.loss": 0.5}, ("evaluate",)
    )
    assert "DVC shows evaluate of another checkpoint" in runs._remarks(compare(found, None))


ROWS = [compare(EXPERIMENT, replace(RUN, metrics=RUN.metrics | {"evaluate.test.accuracy": 0.5})), compare(None, RUN)]


def test_the_table_shows_both_sides_where_they_differ(capsys: pytest.CaptureFixture[str]) -> None:
    runs.print_rows(ROWS, "table")
    header, first, second, note = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["experiment", "rev", "DVC"]
    assert "0.7500 / 0.5000" in first
    assert first.endswith("differ: evaluate.test.accuracy")
    assert second.split()[:4] == ["-", "-", "-", "brave-owl"]
    assert second.endswith("DVC lacks experiment")
    assert "mlflow.db" in note


def test_json_and_csv_hold_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    runs.print_rows(ROWS, "json")
    first, second = json.loads(capsys.readouterr().out)
    assert first["metrics"]["evaluate.test.accuracy"] == {"dvc": 0.75, "mlflow": 0.5}
    assert second["dvc_lacks"] == ["experiment"]
    runs.print_rows(ROWS, "csv")
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert lines[0]["evaluate.test.accuracy (mlflow)"] == "0.5"
    assert [line["run_id"] for line in lines] == [first["run_id"], second["run_id"]]
    assert lines[0]["differ"] == "evaluate.test.accuracy"
