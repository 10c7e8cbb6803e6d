"""Experiments and runs side by side: which belongs to which, what one has and the other lacks, and how it is printed."""

import csv
import io
import json
from dataclasses import replace

import pytest
import yaml

from fieldguide.commands import runs
from fieldguide.commands.runs import TrackedRun, compare, match_runs
from fieldguide.tracking.experiments import FILES, Experiment, Ref, _experiment

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
    METRICS,
)


def test_what_both_have_is_the_same_whatever_the_form_of_its_numbers() -> None:
    (row,) = match_runs([EXPERIMENT], [RUN])
    assert (row["mlflow_lacks"], row["dvc_lacks"], row["differ"]) == ([], [], [])


@pytest.mark.parametrize(
    ("experiment", "run", "expected"),
    [
        ({"metrics": METRICS | {"evaluate.test.ece": 0.1}}, {}, (["evaluate.test.ece"], [], [])),
        ({"params": PARAMS | {"train.ema": 0.9}}, {}, (["train.ema"], [], [])),
        ({}, {"metrics": RUN.metrics | {"evaluate.valid.ece": 0.2}}, ([], ["evaluate.valid.ece"], [])),
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


def test_metrics_of_another_checkpoint_that_a_revision_inherited_are_left_out() -> None:
    texts = dict.fromkeys(FILES, b"") | {
        "lock": yaml.safe_dump({"schema": "2.0", "stages": LOCK}).encode(),
        "params": b"train: {lr: 0.1}",
        "train": b'{"best_loss": 0.5, "note": "no headline"}',
        "evaluate": b'{"test_accuracy": 1.0}',
    }
    found = _experiment(Ref("brave-owl", "c0ffee", "success", 7.0), texts)
    assert found == Experiment(
        "brave-owl", "c0ffee", "success", "a", {"train.lr": 0.1}, {"train.valid.loss": 0.5}, ("evaluate",)
    )
    assert "DVC shows evaluate of another checkpoint" in runs._remarks(compare(found, None))


BASE = replace(EXPERIMENT, name="master", state="commit", params=PARAMS | {"train.lr": 0.05}, time=1e9)
ROWS = [
    compare(replace(EXPERIMENT, time=2e9), replace(RUN, metrics=RUN.metrics | {"evaluate.test.accuracy": 0.5})),
    compare(None, RUN),
    compare(BASE, replace(RUN, name="c0ffee")),
]


def test_the_table_shows_both_sides_where_they_differ(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    runs.print_rows(ROWS, "table")
    header, first, second, third, note = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["experiment", "rev", "created", "DVC"]
    assert "0.7500 / 0.5000" in first
    assert first.endswith("lr=0.1; differ: evaluate.test.accuracy")
    assert second.split()[:5] == ["-", "-", "-", "-", "FINISHED"]
    assert "FINISHED (brave-owl)" in second
    assert second.endswith("DVC lacks experiment")
    assert "FINISHED (c0ffee)" in third
    assert "lr=0.05" not in third  # it is what the others are compared with
    assert "mlflow.db" in note


def test_no_line_of_the_table_is_wider_than_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in (80, 100, 160):
        monkeypatch.setenv("COLUMNS", str(width))
        runs.print_rows([*ROWS, compare(replace(EXPERIMENT, params={f"train.p{k}": k for k in range(99)}), RUN)], "table")
        *lines, _ = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) == width
        assert [line.endswith("…") for line in lines][-1]


def test_runs_of_older_experiments_are_not_said_to_lack_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the experiment's name, or by the checkpoint in the lock file of one of another name; the third belongs to none."""
    older = [Ref("old-owl", "e1", "success", 1.0), Ref("other", "e2", "success", 1.0)]
    monkeypatch.setattr(runs, "contents", lambda names: [b"md5: " + b"d" * 32])
    latest = [
        RUN,
        replace(RUN, run_id="2" * 32, name="old-owl", experiment="old-owl", checkpoint="b" * 32),
        replace(RUN, run_id="3" * 32, name="c0ffee", experiment="", checkpoint="d" * 32),
        replace(RUN, run_id="4" * 32, name="failed", experiment="", checkpoint=""),
        replace(RUN, run_id="5" * 32, name="gone", experiment="gone", checkpoint="e" * 32),
    ]
    left = runs._without_those_of(older, latest, [EXPERIMENT, Experiment("queued-owl", "c0ffee1", "queued")])
    assert [run.name for run in left] == ["brave-owl", "failed", "gone"]


def test_json_and_csv_hold_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    runs.print_rows(ROWS, "json")
    first, second, _ = json.loads(capsys.readouterr().out)
    assert first["metrics"]["evaluate.test.accuracy"] == {"dvc": 0.75, "mlflow": 0.5}
    assert second["dvc_lacks"] == ["experiment"]
    runs.print_rows(ROWS, "csv")
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert lines[0]["evaluate.test.accuracy (mlflow)"] == "0.5"
    assert [line["run_id"] for line in lines] == [RUN.run_id] * 3
    assert lines[0]["differ"] == "evaluate.test.accuracy"
