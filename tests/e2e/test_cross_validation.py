"""A cross-validation with real DVC and real MLflow: queued folds, joined into one table and one run."""

import json
from pathlib import Path

import pandas as pd
import pytest

from support.projects import copy_built, run, tracked_runs, values, wait_for_queue

pytestmark = pytest.mark.slow


def test_queued_folds_are_joined(built_project: Path, tmp_path: Path) -> None:
    project = tmp_path / "a field guide"
    copy_built(built_project, project)
    labelled = pd.read_csv(project / "data/manifest.csv", keep_default_na=False)["id"]
    settings = ("-S", "split_check.folds=2", "-S", "split_check.fold=range(0,2)", "-S", "train.epochs=1")
    run(project, "dvc", "exp", "run", "--queue", *settings, "evaluate")
    run(project, "dvc", "queue", "start", "--jobs", "1")
    status = wait_for_queue(project)
    assert status.count("Success") == 2, status
    for _ in range(2):  # the second time finds the same run
        output = run(project, "python", "-m", "fieldguide", "folds").stdout
    assert "2 of 2 folds: accuracy " in output
    table = pd.read_csv(project / "metrics/folds.csv", keep_default_na=False)
    assert sorted(table["id"]) == sorted(labelled)
    assert table["contradiction"].is_monotonic_decreasing
    metrics = json.loads((project / "metrics/folds.json").read_text())
    assert metrics["accuracy"] == pytest.approx(table["truth"].eq(table["answer_1"]).mean())
    assert metrics["n"] == len(labelled) == sum(score["n"] for score in metrics["per_fold"])
    runs = tracked_runs(project)
    (found,) = runs[runs["name"] == "folds"].itertuples()
    assert found.status == "FINISHED"
    logged = values(project, "latest_metrics", found.run_uuid)
    assert float(logged["folds.accuracy"]) == pytest.approx(metrics["accuracy"])
    assert values(project, "params", found.run_uuid)["split_check.folds"] == "2"
    logs = run(project, "dvc", "queue", "logs", metrics["per_fold"][1]["experiment"]).stdout
    assert "Running stage 'evaluate'" in logs
    assert "label_check" not in logs and "export_onnx" not in logs  # nothing but what a fold needs
