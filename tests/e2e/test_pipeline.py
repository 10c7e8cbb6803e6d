"""The whole pipeline with real DVC and MLflow, on a tiny sample, in a clone whose path has a space."""

import json
import random
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from fieldguide.core.files import file_hash
from fieldguide.core.headlines import HEADLINES
from support import REAL_DATA
from support.projects import TINY, copy_built, copy_project, read, run, tracked_runs, values


@pytest.fixture(scope="module")
def project(built_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy with a tiny sample, on which `dvc repro` has run once."""
    target = tmp_path_factory.mktemp("pipeline") / "a field guide"
    copy_built(built_project, target)
    yield target
    shutil.rmtree(target)


def outputs(project: Path) -> dict[str, str]:
    """Hash of every output file of the stages before the benchmark."""
    stages = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    paths = [project / out["path"] for name, stage in stages.items() if name != "benchmark" for out in stage["outs"]]
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return {str(file.relative_to(project)): file_hash(file) for file in files}


def test_metrics_carry_the_keys_of_the_contract(project: Path) -> None:
    check = read(project, "split_check")
    assert check["classes"] == 3
    assert check["images"] == {"train": 48, "valid": 12, "test": 12}
    assert set(check) >= {"unlabelled", "unreadable", "exact_duplicates", "label_conflicts", "dropped"}
    assert set(check["near_duplicates"]) == {"across_splits", "within_split"}
    assert set(check["missing_classes"]) == {"train", "valid", "test"}
    train = read(project, "train")
    assert set(train) == {"epochs", "best_epoch", "train", "valid", "parameters"}
    assert set(train["train"]) == set(train["valid"]) == {"loss", "accuracy"}
    evaluate = read(project, "evaluate")
    for split in ("train", "valid", "test"):
        assert set(evaluate[split]) >= {"accuracy", "top5_accuracy", "macro_f1", "loss", "ece", "n"}
    assert evaluate["test"]["accuracy_low"] <= evaluate["test"]["accuracy"] <= evaluate["test"]["accuracy_high"]
    assert evaluate["test_without_leaks"]["n"] == 12
    export = read(project, "export_onnx")
    assert export["top1_agreement"] == 1
    assert export["max_abs_difference"] <= 1e-4
    assert export["bytes"] == (project / "models/model.onnx").stat().st_size
    assert export["opset"] == 20
    benchmark = read(project, "benchmark")
    for form in ("fp16", "int8"):
        assert export[form]["bytes"] == (project / f"models/model_{form}.onnx").stat().st_size
    assert export["accuracy"] == evaluate["test"]["accuracy"]
    for backend in ("torch", "onnxruntime", "onnxruntime_fp16", "onnxruntime_int8"):
        assert benchmark[backend]["latency_ms"]["p50"] <= benchmark[backend]["latency_ms"]["p99"]
        assert benchmark[backend]["images_per_second"] > 0
        if backend in ("torch", "onnxruntime"):
            assert benchmark[backend]["accuracy"] == evaluate["test"]["accuracy"]
        assert benchmark[backend]["bytes"] > 0


def test_nothing_to_do_runs_nothing(project: Path) -> None:
    assert "Running stage" not in run(project, "dvc", "repro").stdout


@pytest.mark.slow
def test_dvc_and_mlflow_tell_the_same(project: Path) -> None:
    output = run(project, "python", "-m", "fieldguide", "runs", "--format", "json").stdout
    (row,) = json.loads(output[output.index("[\n") :])
    assert row["run_status"] == "FINISHED"
    assert [row[name] for name in ("mlflow_lacks", "dvc_lacks", "differ", "stale")] == [[], [], [], []]
    accuracy = read(project, "evaluate")["test"]["accuracy"]
    assert row["metrics"]["evaluate.test.accuracy"] == {"dvc": accuracy, "mlflow": accuracy}


@pytest.mark.slow
def test_a_second_forced_run_gives_the_same_bytes(project: Path) -> None:
    before = outputs(project)
    assert len(before) >= 12
    run(project, "dvc", "repro", "--force", "export_onnx", "evaluate")
    assert outputs(project) == before


def test_no_output_names_a_folder_of_this_machine(built_project: Path) -> None:
    for name in outputs(built_project):
        assert str(built_project).encode() not in (built_project / name).read_bytes(), name


def test_the_training_run_holds_params_curves_metrics_and_model(project: Path) -> None:
    runs = tracked_runs(project)
    digest = file_hash(project / "models/model.safetensors", "md5")
    run_uuid = runs[runs["fieldguide.checkpoint_md5"] == digest]["run_uuid"].iloc[0]
    assert runs.set_index("run_uuid").loc[run_uuid, "status"] == "FINISHED"
    params = values(project, "params", run_uuid)
    assert params["train.epochs"] == "2"
    assert params["data.sample.species"] == "3"
    metrics = values(project, "latest_metrics", run_uuid)
    assert metrics["valid.accuracy"] == pytest.approx(pd.read_csv(project / "metrics/history.csv")["valid_accuracy"].iloc[-1])
    assert metrics["evaluate.test.accuracy"] == pytest.approx(read(project, "evaluate")["test"]["accuracy"])
    assert metrics["export_onnx.top1_agreement"] == 1
    assert metrics["benchmark.onnxruntime.latency_ms.p50"] > 0
    artifacts = {file.name for file in (project / "mlartifacts").rglob("*") if run_uuid in file.parts}
    assert {"model.safetensors", "confusion_test.png", "report.html", "curves.png", "history.csv"} <= artifacts
    logged = {file.read_bytes() for file in (project / "mlartifacts" / "models").rglob("model.onnx")}
    assert logged == {(project / "models/model.onnx").read_bytes()}


def test_evaluate_export_and_benchmark_hang_below_the_run_that_they_measured(project: Path) -> None:
    runs = tracked_runs(project)
    digest = file_hash(project / "models/model.safetensors", "md5")
    parents = set(runs[runs["fieldguide.checkpoint_md5"] == digest]["run_uuid"])
    children = runs[runs["mlflow.parentRunId"].isin(parents)]
    assert set(children["fieldguide.stage"]) == {"evaluate", "export_onnx", "benchmark", "report"}


@pytest.mark.slow
def test_dvc_shows_metrics_plots_and_experiments(project: Path) -> None:
    assert "test_accuracy" in run(project, "dvc", "metrics", "show", "--md").stdout
    diff = run(project, "dvc", "metrics", "diff", "--all", "HEAD").stdout.splitlines()
    assert {line.split()[1] for line in diff[1:]} <= {name for names in HEADLINES.values() for name in names}
    assert 30 < len(diff) <= 40  # a screen, all figures
    assert "index.html" in run(project, "dvc", "plots", "show").stdout
    assert "train.epochs" in run(project, "dvc", "exp", "show", "--csv").stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.lr=-1", r"error: params.yaml: train.lr must be in \(0, 10\], got -1"),
        pytest.param("data.path=/nowhere.zip", "error: data.path: /nowhere.zip does not exist", marks=pytest.mark.slow),
        pytest.param("model.name=unheard_of", "error: params.yaml: model.name is unheard_of", marks=pytest.mark.slow),
    ],
)
def test_bad_params_are_one_line_and_leave_the_results(project: Path, change: str, message: str) -> None:
    metrics = (project / "metrics" / "evaluate.json").read_bytes()
    ended = run(project, "dvc", "exp", "run", "-S", change, check=False)
    run(project, "git", "checkout", "params.yaml")
    assert ended.returncode != 0
    assert re.search(message, ended.stdout), ended.stdout
    assert "Traceback" not in ended.stdout
    assert (project / "metrics" / "evaluate.json").read_bytes() == metrics


REAL = {  # of subset()
    "butterflies": {"classes": 6, "unlabelled": 0},
    "flowers": {"images": {"train": 360, "valid": 245, "test": 0}, "unlabelled": 245},
}


def subset(dataset: str, target: Path) -> Path:
    """Some of a real archive: six species, or the first shard of each split. The whole ones: test_layout, test_tfrecord."""
    with zipfile.ZipFile(REAL_DATA / f"{dataset}.zip") as whole, zipfile.ZipFile(target, "w") as part:
        species = sorted({name.split("/")[1] for name in whole.namelist() if name.endswith(".jpg")})
        taken = random.Random(0).sample(species, 6) if dataset == "butterflies" else []
        for name in whole.namelist():
            if name.endswith(".csv") or "/00-" in name or name.split("/")[1] in taken:
                part.writestr(name, whole.read(name))
    return target


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("dataset", REAL)
def test_a_real_archive_goes_through_all_stages(dataset: str, tmp_path: Path) -> None:
    target = tmp_path / dataset
    copy_project(target, TINY)
    archive = subset(dataset, tmp_path / f"{dataset}.zip")
    settings = [f"data.dataset={dataset}", f"data.path={archive}", "train.epochs=1"]
    run(target, "dvc", "exp", "run", *(word for setting in settings for word in ("-S", setting)))
    check = read(target, "split_check")
    assert {key: check[key] for key in REAL[dataset]} == REAL[dataset]
    measured = "test" if check["images"]["test"] else "valid"
    assert read(target, "evaluate")[measured]["n"] == check["images"][measured] >= 30
    assert read(target, "export_onnx")["top1_agreement"] == 1
    assert read(target, "benchmark")["onnxruntime"]["accuracy"] == read(target, "evaluate")[measured]["accuracy"]
    submission = pd.read_csv(target / "metrics/submission.csv")
    assert list(submission.columns) == ["id", "label"]
    if dataset == "flowers":
        with zipfile.ZipFile(archive) as source:
            expected = pd.read_csv(source.open("sample_submission.csv"))
        assert set(submission["id"]) < set(expected["id"])
        assert len(submission) == submission["id"].nunique() == check["unlabelled"]
    else:
        assert submission.empty
    shutil.rmtree(target)
