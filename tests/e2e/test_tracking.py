"""Tracking with the real MLflow: one store at the root, runs found by the checkpoint, and no failure that stops the work."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.entities import Run as StoredRun
from mlflow.exceptions import MlflowException

from fieldguide.core.headlines import TRACKED
from fieldguide.onnx.classifier import OUTPUT_NAMES, OnnxClassifier
from fieldguide.tracking import run as tracking
from fieldguide.tracking.journal import new_journal
from fieldguide.tracking.sender import send_all, unsent_journals
from fieldguide.tracking.store import CHECKPOINT_TAG, DEFAULTS, LOCATIONS, NOTE_TAG, VIEW_COLUMNS, VIEW_TAG, in_words
from support import ROOT
from support.browser import MARKS, chromium
from support.mean_colour import NAMES, PX, mean_colour_network, save
from support.settings import PARAMS

EVALUATED = {"test": {"accuracy": 0.875, "n": 8}, "note": "no number"}

pytestmark = [
    pytest.mark.filterwarnings(  # MLflow's own tables use a loader that SQLAlchemy 2.1 deprecates
        "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),  # of MLflow's own code, on import
]


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def python(script: str, folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A process in `folder` with the project's code; what it prints lands in one file beside its folder's content."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTEST_", "CI"))}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


START = f"""
from pathlib import Path
from fieldguide.tracking import run as tracking
from fieldguide.core.params import read_params
from fieldguide.tracking.store import CHECKPOINT_TAG
params = read_params(Path({str(ROOT / "params.yaml")!r}))
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tracking sets for its process is gone after each test."""
    for name, value in DEFAULTS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a space in its name; making its store takes seconds, so most tests share it."""
    return tmp_path_factory.mktemp("tracking") / "field guide"


@pytest.fixture
def root(shared_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared root by `DVC_ROOT`, seen from another folder, as in `dvc exp run --temp`."""
    shared_root.mkdir(exist_ok=True)
    elsewhere = tmp_path / "temporary experiment"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("DVC_ROOT", str(shared_root))
    return shared_root


@pytest.fixture
def copied_root(root: Path, tmp_path: Path) -> Path:
    """A folder that holds a copy of the shared store."""
    if not (root / "mlflow.db").exists():
        start_run()
    copy = tmp_path / "copied"
    copy.mkdir()
    shutil.copy(root / "mlflow.db", copy)
    return copy


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A file that no other test has."""
    target = tmp_path / "model.safetensors"
    target.write_bytes(str(tmp_path).encode())
    return target


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def start_run() -> tracking.Run:
    with tracking.training_run(PARAMS) as run:
        return run


def train(root: Path, checkpoint: Path) -> str:
    """The id of a training run that made `checkpoint`."""
    with tracking.training_run(PARAMS) as run:
        run.tag(CHECKPOINT_TAG, md5(checkpoint))
    return id_of(root, run)


def client(root: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def id_of(root: Path, run: tracking.Run | str) -> str:
    """MLflow's id of a run, found by its key; waits until it has been sent."""
    key = run if isinstance(run, str) else run.key
    for _ in range(200):
        if (root / "mlflow.db").exists():
            with closing(sqlite3.connect(root / "mlflow.db")) as store, suppress(sqlite3.OperationalError):
                query = "select run_uuid from tags where key = 'fieldguide.run' and value = ?"
                if found := store.execute(query, [key]).fetchone():
                    return found[0]
        time.sleep(0.1)
    raise AssertionError(f"{key} never reached the store")


def stored(root: Path, run_id: str) -> StoredRun:
    return client(root).get_run(run_id)


def children(root: Path, run_id: str) -> list[StoredRun]:
    store = client(root)
    experiment = store.get_experiment_by_name("fieldguide")
    return list(store.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"))


def count_of_runs_with(root: Path, key: str) -> int:
    with closing(sqlite3.connect(root / "mlflow.db")) as store:
        return store.execute("select count(*) from tags where key = 'fieldguide.run' and value = ?", [key]).fetchone()[0]


def n_runs(store: Path) -> int:
    with closing(sqlite3.connect(store)) as connection:
        return connection.execute("select count(*) from runs").fetchone()[0]


def artifacts(root: Path, run_id: str) -> set[str]:
    folder = root / "mlartifacts" / run_id / "artifacts"
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_the_store_lies_at_the_root_whatever_the_working_folder(root: Path) -> None:
    run = start_run()
    assert stored(root, id_of(root, run)).info.status == "FINISHED"
    assert list(Path.cwd().iterdir()) == []


def test_the_experiment_has_a_view_of_its_trainings_and_links_it_where_nobody_described_it(
    copied_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(copied_root))
    store = client(copied_root)
    experiment = store.get_experiment_by_name("fieldguide")
    view = json.loads(experiment.tags[VIEW_TAG])
    assert [TRACKED[name] for name in VIEW_COLUMNS] == [
        column.removeprefix("metrics.`")[:-1] for column in view["selectedColumns"]
    ]
    assert f"#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=" in experiment.tags[NOTE_TAG]
    for name in (NOTE_TAG, VIEW_TAG):
        store.set_experiment_tag(experiment.experiment_id, name, "ours")
    id_of(copied_root, start_run())
    again = store.get_experiment_by_name("fieldguide").tags
    assert again[NOTE_TAG] == again[VIEW_TAG] == "ours"


def test_without_dvc_the_root_is_the_working_folder(copied_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT")
    monkeypatch.chdir(copied_root)
    before = n_runs(copied_root / "mlflow.db")
    start_run()
    assert n_runs(copied_root / "mlflow.db") == before + 1


@pytest.mark.parametrize("name", ["50%20 off", "a?b", "#1", "Müller und Söhne"])
def test_the_store_lies_at_a_root_with_signs_that_mean_something_in_an_address(
    copied_root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)  # or MLflow would try for 100 seconds
    odd = copied_root.rename(copied_root.parent / name)
    before, beside = n_runs(odd / "mlflow.db"), sorted(odd.parent.iterdir())
    monkeypatch.setenv("DVC_ROOT", str(odd))
    start_run()
    assert n_runs(odd / "mlflow.db") == before + 1
    assert {each for each in odd.parent.iterdir() if any(each.iterdir())} <= {*beside}  # no second store, nor its lock
    if name == "Müller und Söhne":
        assert sorted(odd.parent.iterdir()) == beside  # nor the empty folder that MLflow makes of % ? #


@pytest.mark.parametrize("name", ["moved", "100% _moved", "Fotos (älter)"])
@pytest.mark.parametrize("is_copy", [False, True], ids=["moved", "copied"])
def test_a_project_that_was_moved_or_copied_writes_into_itself(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_copy: bool
) -> None:
    before = root / "mlartifacts"
    old, new = tmp_path / "old place" / "a_b%", tmp_path / name
    old.mkdir(parents=True)
    start_run()
    shutil.copy(root / "mlflow.db", old)
    with closing(sqlite3.connect(old / "mlflow.db")) as store, store:
        for table, column in LOCATIONS:
            change = f"update {table} set {column} = replace({column}, ?, ?)"
            store.execute(change, [before.as_uri(), (old / "mlartifacts").as_uri()])
        store.execute("insert into experiments (name, artifact_location) values ('another', ?)", [f"{old.as_uri()}/elsewhere"])
    (shutil.copytree if is_copy else shutil.move)(old, new)
    monkeypatch.setenv("DVC_ROOT", str(new))
    kept = [(file.name, file.read_bytes()) for file in old.rglob("*")]
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(b"weights")
    train(new, checkpoint)
    with tracking.stage_run("evaluate", PARAMS.evaluate, checkpoint) as run:
        run.log({}, checkpoint)
    assert [(file.name, file.read_bytes()) for file in old.rglob("*")] == kept  # nothing, where it was moved
    assert list((new / "mlartifacts").rglob(checkpoint.name))
    with closing(sqlite3.connect(new / "mlflow.db")) as store:
        for table, column in LOCATIONS:
            query = f"select {column} from {table} where {column} like '%/mlartifacts%'"
            places = [place for (place,) in store.execute(query)]
            assert all(place.startswith((new / "mlartifacts").as_uri()) for place in places), places
        (other,) = store.execute("select artifact_location from experiments where name = 'another'").fetchone()
    assert other == f"{old.as_uri()}/elsewhere"


def test_a_training_run_has_every_param_under_its_dotted_name(root: Path) -> None:
    params = stored(root, id_of(root, start_run())).data.params
    assert params["train.lr"] == str(PARAMS.train.lr)
    assert params["data.sample.species"] == str(PARAMS.data.sample.species)
    assert params["benchmark.batch_sizes"] == str(list(PARAMS.benchmark.batch_sizes))
    assert {name.split(".")[0] for name in params} == set(type(PARAMS).model_fields)


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no"), "FAILED"), (KeyboardInterrupt(), "FAILED"), (SystemExit(143), "KILLED")]
)
def test_an_error_fails_the_run_and_goes_on_its_way(root: Path, error: BaseException, status: str) -> None:
    runs = []
    with pytest.raises(type(error)) as caught, tracking.training_run(PARAMS) as run:
        runs.append(id_of(root, run))
        assert stored(root, runs[0]).info.status == "RUNNING"
        raise error
    assert caught.value is error
    assert stored(root, runs[0]).info.status == status


def test_a_training_that_goes_on_has_one_run(root: Path) -> None:
    with pytest.raises(SystemExit), tracking.training_run(PARAMS) as first:
        first.log_metrics({"loss": 2.0}, step=1)
        raise SystemExit(143)
    first_id = id_of(root, first)
    with tracking.training_run(PARAMS, first.key) as second:
        second.log_metrics({"loss": 1.0}, step=2)
        for _ in range(100):
            if stored(root, first_id).info.status == "RUNNING":
                break
            time.sleep(0.1)
        assert stored(root, first_id).info.status == "RUNNING"
    assert second.key == first.key
    assert count_of_runs_with(root, first.key) == 1
    run = stored(root, first_id)
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 1.0)


def test_a_training_whose_run_is_gone_from_the_store_has_a_new_one(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.training_run(PARAMS, "0" * 32) as run:
        pass
    gone = stored(root, id_of(root, run))
    assert (gone.info.status, gone.data.params["train.lr"]) == ("FINISHED", str(PARAMS.train.lr))
    assert "warning" not in capsys.readouterr().err


def test_metrics_are_kept_for_each_step_and_what_is_no_number_is_left_out(root: Path) -> None:
    with tracking.training_run(PARAMS) as run:
        for step in (1, 2, 3):
            run.log_metrics({"valid": {"loss": 1 / step, "name": "x"}, "n": step, "exact": np.float64(0.1)}, step=step)
    history = client(root).get_metric_history(id_of(root, run), "valid.loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert stored(root, id_of(root, run)).data.metrics == {"valid.loss": 1 / 3, "n": 3, "exact": 0.1}


def test_files_land_in_the_roots_mlartifacts(root: Path, checkpoint: Path) -> None:
    with tracking.training_run(PARAMS) as run:
        run.log_files(checkpoint, folder="model")
    assert artifacts(root, id_of(root, run)) == {"model/model.safetensors"}
    copy = root / "mlartifacts" / id_of(root, run) / "artifacts" / "model" / "model.safetensors"
    assert copy.read_bytes() == checkpoint.read_bytes()
    assert list(Path.cwd().iterdir()) == []


def test_a_run_is_named_after_the_experiment_and_tells_where_it_comes_from(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "brave-owl")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "c0ffee")
    run = stored(root, id_of(root, start_run()))
    assert run.info.run_name == "brave-owl"
    assert (run.data.tags["dvc.experiment"], run.data.tags["dvc.baseline"]) == ("brave-owl", "c0ffee")
    assert run.data.tags["fieldguide.stage"] == "train"


def test_outside_an_experiment_a_run_is_named_after_the_commit_or_train(root: Path) -> None:
    assert stored(root, id_of(root, start_run())).info.run_name == "train"
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "init", "--quiet"], check=True)
    assert stored(root, id_of(root, start_run())).info.run_name == "train"  # before the first commit
    subprocess.run(["git", *identity, "commit", "--quiet", "--allow-empty", "--message", "first"], check=True)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    run = stored(root, id_of(root, start_run()))
    assert run.info.run_name == commit[:7]
    assert run.data.tags["mlflow.source.git.commit"] == commit


def test_a_stage_is_a_child_of_the_run_that_made_its_checkpoint(root: Path, checkpoint: Path) -> None:
    parent_id = train(root, checkpoint)
    with tracking.stage_run("evaluate", PARAMS.evaluate, checkpoint):
        pass
    (child,) = children(root, parent_id)
    assert (child.info.run_name, child.info.status) == ("evaluate", "FINISHED")
    assert child.data.tags["fieldguide.stage"] == "evaluate"
    assert child.data.params == {f"evaluate.{key}": str(value) for key, value in PARAMS.evaluate.model_dump().items()}
    assert child.data.params["evaluate.ece_bins"] == str(PARAMS.evaluate.ece_bins)


def test_a_stages_metrics_and_files_are_copied_to_the_finished_run(root: Path, checkpoint: Path, tmp_path: Path) -> None:
    parent_id = train(root, checkpoint)
    report = tmp_path / "evaluate.json"
    report.write_text("{}")
    with tracking.stage_run("evaluate", PARAMS.evaluate, checkpoint) as run:
        run.log(EVALUATED, report)
    expected = {"evaluate.test.accuracy": 0.875, "evaluate.test.n": 8}
    (child,) = children(root, parent_id)
    parent = stored(root, parent_id)
    assert parent.data.metrics == child.data.metrics == expected
    assert parent.info.status == "FINISHED"
    assert artifacts(root, parent_id) == {"evaluate/evaluate.json"}


def test_a_training_run_tells_data_params_lock_device_and_versions(root: Path) -> None:
    Path("data/raw").mkdir(parents=True)
    Path("metrics/headlines").mkdir(parents=True)
    Path("data/manifest.csv").write_bytes(b"a manifest")
    Path("dvc.lock").write_bytes(b"a lock file")
    Path("metrics/split_check.json").write_text('{"classes": 3, "images": {"train": 48}}')
    Path("metrics/headlines/split_check.json").write_text('{"dropped": 9}')  # not read beside the metrics
    Path("metrics/headlines/label_check.json").write_text('{"suspected_labels": 2}')  # DVC has not restored the metrics
    with tracking.training_run(PARAMS, device="a processor") as run:
        pass
    stored_run = stored(root, id_of(root, run))
    tags = stored_run.data.tags
    assert tags["fieldguide.data_md5"] == md5(Path("data/manifest.csv"))
    assert tags["fieldguide.lock_sha256"] == hashlib.sha256(b"a lock file").hexdigest()
    assert tags["fieldguide.device"] == "a processor"
    assert json.loads(tags["fieldguide.versions"])["mlflow"] == version("mlflow")
    data = {"split_check.classes": 3, "split_check.images.train": 48, "label_check.suspected": 2}
    assert stored_run.data.metrics == data
    changed = PARAMS.model_copy(update={"train": PARAMS.train.model_copy(update={"seed": 7})})
    hashes = []
    for params in (PARAMS, changed):
        with tracking.training_run(params) as run:
            pass
        hashes.append(stored(root, id_of(root, run)).data.tags["fieldguide.params_sha256"])
    assert hashes[0] == tags["fieldguide.params_sha256"] != hashes[1]


def test_the_data_are_inputs_of_the_run_once_however_often_they_are_told(root: Path, checkpoint: Path) -> None:
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/receipt.json").write_text('{"dataset": "sample", "title": "Drawn"}')
    rows = pd.DataFrame({"label": pd.array([0, 1, 1], "Int64"), "file": pd.array(list("abc"), "string"), "use": True})
    rows.to_csv("data/manifest.csv")
    with tracking.training_run(PARAMS) as run:
        for _ in range(2):
            run.log_data("train", rows)
        run.tag(CHECKPOINT_TAG, md5(checkpoint))
    with tracking.stage_run("evaluate", PARAMS.evaluate, checkpoint) as stage:
        stage.log_data("test", rows[:1])
    run_id = id_of(root, run)
    (child,) = children(root, run_id)
    found = {given.dataset.name: given for given in stored(root, run_id).inputs.dataset_inputs}
    assert set(found) == {"sample/train", "sample/test"}
    assert [given.dataset.name for given in stored(root, child.info.run_id).inputs.dataset_inputs] == ["sample/test"]
    trained = found["sample/train"]
    assert trained.dataset.digest == md5(Path("data/manifest.csv"))
    assert json.loads(trained.dataset.profile) == {"num_rows": 3, "num_classes": 2}
    assert json.loads(trained.dataset.source) == {"uri": "data/manifest.csv", "title": "Drawn"}
    columns = {column["name"]: column["type"] for column in json.loads(trained.dataset.schema)["mlflow_colspec"]}
    assert columns == {"label": "long", "file": "string", "use": "boolean"}
    assert {name: given.tags[0].value for name, given in found.items()} == {"sample/train": "training", "sample/test": "test"}


def test_the_load_of_the_machine_is_sampled_under_mlflows_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SYSTEM_SECONDS", 0.05)
    with tracking.training_run(PARAMS) as run:
        for _ in range(1000):
            if run.journal.entries.read_text().count("system/cpu") >= 3:
                break
            time.sleep(0.05)
    history = client(root).get_metric_history(id_of(root, run), "system/system_memory_usage_megabytes")
    assert [point.step for point in history[:3]] == [0, 1, 2]
    assert all(point.value > 0 for point in history)
    names = set(stored(root, id_of(root, run)).data.metrics)
    assert {"system/cpu_utilization_percentage", "system/network_receive_megabytes"} < names


def test_a_stage_run_again_with_the_same_params_adds_to_its_run(root: Path, checkpoint: Path) -> None:
    parent_id = train(root, checkpoint)
    other = PARAMS.evaluate.model_copy(update={"ece_bins": 7})
    for accuracy, settings in ((0.5, PARAMS.evaluate), (0.75, PARAMS.evaluate), (0.25, other)):
        with tracking.stage_run("evaluate", settings, checkpoint) as run:
            run.log({"accuracy": accuracy})
        assert stored(root, parent_id).data.metrics == {"evaluate.accuracy": accuracy}
    found = {child.data.params["evaluate.ece_bins"]: child for child in children(root, parent_id)}
    assert {bins: child.data.metrics["evaluate.accuracy"] for bins, child in found.items()} == {"15": 0.75, "7": 0.25}
    history = client(root).get_metric_history(found["15"].info.run_id, "evaluate.accuracy")
    assert sorted(point.value for point in history) == [0.5, 0.75]


def exported(root: Path, checkpoint: Path, folder: Path) -> tuple[str, Path]:
    """A training run's id and an ONNX file, logged as the model that the run made."""
    run_id = train(root, checkpoint)
    onnx = save(folder, mean_colour_network())
    with tracking.stage_run("export_onnx", PARAMS.export, checkpoint) as run:
        run.log_model(onnx, np.zeros((1, PX, PX, 3), np.uint8))
    return run_id, onnx


def logged_models(root: Path, run_id: str) -> list[LoggedModel]:
    experiment = client(root).get_experiment_by_name("fieldguide").experiment_id
    return list(client(root).search_logged_models([experiment], f"source_run_id = '{run_id}'"))


def test_the_onnx_file_is_a_model_that_mlflow_loads_and_that_answers_as_the_classifier(
    root: Path, checkpoint: Path, tmp_path: Path
) -> None:
    from mlflow import pyfunc  # only now: the import warns
    from mlflow.pyfunc.scoring_server import infer_and_parse_data

    run_id, onnx = exported(root, checkpoint, tmp_path)
    (model,) = logged_models(root, run_id)
    assert (model.name, model.status, model.tags["fieldguide.checkpoint_md5"]) == ("fieldguide", "READY", md5(checkpoint))
    assert [output.model_id for output in stored(root, run_id).outputs.model_outputs] == [model.model_id]
    folder = root / "mlartifacts" / "models" / model.model_id / "artifacts"
    assert (folder / "model.onnx").read_bytes() == onnx.read_bytes()
    loaded = pyfunc.load_model(str(folder))
    assert set(loaded.metadata.flavors) == {"onnx", "python_function"}
    assert tuple(loaded.metadata.metadata["fieldguide"]["class_names"]) == NAMES
    images = np.random.default_rng(1).integers(0, 256, (3, PX, PX, 3), dtype=np.uint8)
    classifier = OnnxClassifier(onnx)
    answers = loaded.predict(images)
    assert set(answers) == set(OUTPUT_NAMES)
    for name, expected in zip(OUTPUT_NAMES, classifier.run(images, OUTPUT_NAMES), strict=True):
        assert np.array_equal(answers[name], expected)
    served = json.loads((folder / "serving_input_example.json").read_text())  # what is posted to `mlflow models serve`
    parsed = infer_and_parse_data(served, loaded.metadata.get_input_schema())
    assert np.array_equal(loaded.predict(parsed)["probabilities"], classifier.probabilities(np.zeros_like(images[:1])))
    with pytest.raises(MlflowException, match="dtype of input float32 does not match expected dtype uint8"):
        loaded.predict(images.astype(np.float32))
    scaled = infer_and_parse_data({"inputs": (images / 256).tolist()}, loaded.metadata.get_input_schema())
    assert not scaled.any()  # MLflow's doing, of which the model's page warns:
    assert "pixels scaled to 0..1 all become 0" in model.tags["mlflow.note.content"]


def test_a_model_that_is_sent_again_is_there_once_and_one_half_sent_is_completed(
    root: Path, checkpoint: Path, tmp_path: Path
) -> None:
    run_id, onnx = exported(root, checkpoint, tmp_path)
    (model,) = logged_models(root, run_id)
    client(root).finalize_logged_model(model.model_id, "FAILED")
    shutil.rmtree(root / "mlartifacts" / "models" / model.model_id)
    for _ in range(2):
        with tracking.stage_run("export_onnx", PARAMS.export, checkpoint) as run:
            run.log_model(onnx, np.zeros((1, PX, PX, 3), np.uint8))
        (again,) = logged_models(root, run_id)
        assert (again.model_id, again.status) == (model.model_id, "READY")
        assert (root / "mlartifacts" / "models" / model.model_id / "artifacts" / "model.onnx").exists()
    other = save(tmp_path, mean_colour_network(activation=False))
    with tracking.stage_run("export_onnx", PARAMS.export, checkpoint) as run:
        run.log_model(other, np.zeros((1, PX, PX, 3), np.uint8))
    assert len(logged_models(root, run_id)) == 2


def test_a_failing_stage_fails_its_own_run_only(root: Path, checkpoint: Path) -> None:
    parent_id = train(root, checkpoint)
    with pytest.raises(ValueError, match=r"^no$"), tracking.stage_run("evaluate", PARAMS.evaluate, checkpoint):
        raise ValueError("no")
    assert children(root, parent_id)[0].info.status == "FAILED"
    assert stored(root, parent_id).info.status == "FINISHED"


def test_of_two_runs_with_the_same_checkpoint_the_later_is_taken(root: Path, checkpoint: Path) -> None:
    first = train(root, checkpoint)
    time.sleep(0.01)
    second = train(root, checkpoint)
    with tracking.stage_run("evaluate", PARAMS.evaluate, checkpoint):
        pass
    assert (len(children(root, first)), len(children(root, second))) == (0, 1)


def test_a_checkpoint_from_a_cache_gets_one_run_of_its_own(root: Path, checkpoint: Path) -> None:
    with tracking.stage_run("evaluate", PARAMS.evaluate, checkpoint) as run:
        run.log(EVALUATED)
    with tracking.stage_run("benchmark", PARAMS.benchmark, checkpoint) as run:
        run.log({"torch": {"bytes": 7}})
    experiment = client(root).get_experiment_by_name("fieldguide").experiment_id
    (parent,) = client(root).search_runs([experiment], f"tags.`fieldguide.checkpoint_md5` = '{md5(checkpoint)}'")
    assert {child.info.run_name for child in children(root, parent.info.run_id)} == {"evaluate", "benchmark"}
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["fieldguide.checkpoint_md5"] == md5(checkpoint)
    assert parent.data.tags["fieldguide.restored"] == "true"
    expected = {"evaluate.test.accuracy": 0.875, "evaluate.test.n": 8, "benchmark.torch.bytes": 7}
    assert parent.data.metrics == expected


def test_a_tracking_uri_that_is_set_takes_the_place_of_the_roots_store(
    root: Path, copied_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = n_runs(root / "mlflow.db"), n_runs(copied_root / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copied_root / 'mlflow.db'}")
    start_run()
    assert (n_runs(root / "mlflow.db"), n_runs(copied_root / "mlflow.db")) == (before[0], before[1] + 1)


def test_a_missing_file_ends_the_tracking_with_one_warning_and_not_the_work(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracking.training_run(PARAMS) as run:
        run.log_files(Path("gone.png"), Path("gone.csv"), folder="train")
        run.log_metrics({"loss": 1.0})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: MLflow: ")
    assert "gone.png" in lines[0]
    assert lines[0].endswith("; tracking is off for the rest of this run")


def test_a_machine_without_git_is_tracked_all_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert stored(root, id_of(root, start_run())).info.status == "FINISHED"


def store_warnings(text: str) -> tuple[int, int]:
    """Number of warnings that the store cannot be reached, and that entries were not sent."""
    lines = [line for line in text.splitlines() if line.startswith("warning: MLflow: ")]
    return sum("sent when the store can be reached" in line for line in lines), sum("are not sent" in line for line in lines)


def test_a_damaged_store_is_told_and_does_not_stop_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database " * 500)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with tracking.training_run(PARAMS) as run:
        run.log_metrics({"loss": 1.0})
    begun, ended = store_warnings(capsys.readouterr().err)
    assert begun <= 1
    assert ended == 1


@pytest.mark.parametrize("uri", ["nonsense://x", "postgresql+nodriver://127.0.0.1/x"])
def test_a_tracking_uri_that_cannot_be_used_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    start_run()
    assert store_warnings(capsys.readouterr().err)[1] == 1


TRAINING = f"""{START}
import sys, time
import numpy as np
with tracking.training_run(params) as run:
    for step in range(1, 1 + int(sys.argv[1])):
        time.sleep(0.05)
        run.log_metrics({{"loss": 1 / step}}, step=step)
    Path("model").write_bytes(b"weights")
    run.log_files(Path("model"), folder="model")
    run.tag(CHECKPOINT_TAG, {hashlib.md5(b"weights", usedforsecurity=False).hexdigest()!r})
    print("trained", flush=True)
with tracking.stage_run("evaluate", params.evaluate, Path("model")) as run:
    run.log({{"accuracy": 0.75}}, Path("model"))
    run.log_model(Path("model.onnx"), np.zeros((1, {PX}, {PX}, 3), np.uint8))
"""
STEPS = 20


def trained_with(folder: Path, uri: str) -> str:
    """What a training of `STEPS` and a stage print in a process of their own; their outputs are gone afterwards."""
    process = python(TRAINING, folder, str(STEPS), DVC_ROOT=str(folder), MLFLOW_TRACKING_URI=uri)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    (folder / "model").unlink()
    (folder / "model.onnx").unlink()
    return output


def sync(folder: Path, uri: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder), "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-m", "fieldguide", "sync"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


class Server:
    """A real MLflow server on a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, closed_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self, *options: str, **environment: str) -> None:
        store = [
            "--backend-store-uri",
            f"sqlite:///{self.folder / 'server.db'}",
            "--artifacts-destination",
            str(self.folder / "files"),
        ]
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
            *store,
            *options,
        ]
        environment = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **environment,
        }
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(1200):
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                return
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.1)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def rows(self, query: str) -> list[tuple]:
        with closing(sqlite3.connect(self.folder / "server.db")) as store:
            return store.execute(query).fetchall()

    def holds_all(self) -> None:
        """Asserts that both runs are there, once, with every value."""
        query = "select value from tags where key = 'fieldguide.stage' order by value"
        assert self.rows(query) == [("evaluate",), ("train",)]
        assert self.rows("select status, count(*) from runs group by status") == [("FINISHED", 2)]
        assert self.rows("select step, value from metrics where key = 'loss' order by step") == [
            (step, 1 / step) for step in range(1, STEPS + 1)
        ]
        assert self.rows("select count(*) from metrics where key = 'evaluate.accuracy' and value = 0.75") == [(2,)]
        files = [file.name for file in (self.folder / "files").rglob("*") if file.is_file()]
        assert (files.count("model"), files.count("model.onnx"), files.count("MLmodel")) == (2, 1, 1)
        assert self.rows("select name, status from logged_models") == [("fieldguide", int(LoggedModelStatus.READY.to_int()))]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    made = Server(tmp_path / "server")
    yield made
    made.kill()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    save(folder, mean_colour_network())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("browser", [pytest.param(None, marks=MARKS)])
def test_mlflows_table_of_trainings_has_the_headlines_as_columns(server: Server, work: Path, browser: None) -> None:
    server.start()
    trained_with(work, server.uri)
    store = MlflowClient(server.uri)
    (trained,) = store.search_runs(["1"], "tags.`fieldguide.stage` = 'train'")
    for name in VIEW_COLUMNS:
        store.log_metric(trained.info.run_id, TRACKED[name], 0.5)
    with chromium() as launched:
        page = launched.new_page(viewport={"width": 1600, "height": 900})
        page.goto(f"{server.uri}/#/experiments/1/runs?viewStateShareKey=headlines")
        for name in VIEW_COLUMNS:
            page.get_by_role("columnheader", name=TRACKED[name], exact=True).first.wait_for()
        assert page.get_by_role("columnheader", name="Source").count() == 0  # of the columns that MLflow shows otherwise
        page.get_by_text("1 matching run").wait_for()  # of two: that of `evaluate` is a child


@pytest.mark.slow
def test_with_a_server_that_is_down_nothing_waits_nothing_is_lost_and_one_command_sends_all(server: Server, work: Path) -> None:
    output = trained_with(work, server.uri)
    assert store_warnings(output)[1] == 2, output
    assert output.index("trained") < output.index("are not sent")
    server.start()
    sent = sync(work, server.uri)
    assert sent.returncode == 0, sent.stderr
    assert sent.stdout.splitlines()[-1] == "MLflow: 2 runs sent"
    server.holds_all()
    assert list((work / ".fieldguide" / "tracking").iterdir()) == []
    assert sync(work, server.uri).stdout == "MLflow: 0 runs sent\n"
    server.holds_all()


@pytest.mark.slow
def test_a_server_that_dies_midway_and_comes_back_has_everything_once(server: Server, work: Path) -> None:
    server.start()
    process = python(TRAINING, work, str(STEPS), DVC_ROOT=str(work), MLFLOW_TRACKING_URI=server.uri)
    for _ in range(600):
        if (server.folder / "server.db").exists():
            with suppress(sqlite3.OperationalError):
                if server.rows("select count(*) from metrics")[0][0] >= 3:
                    break
        time.sleep(0.02)
    server.kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert store_warnings(output)[1] >= 1, output
    refused = sync(work, server.uri)
    assert refused.returncode == 1
    assert "are not sent; they are kept in" in refused.stderr
    server.start()
    (work / "other").write_bytes(b"another checkpoint")
    script = f"{START}\nwith tracking.stage_run('benchmark', params.benchmark, Path('other')): pass"
    later = python(script, work, DVC_ROOT=str(work), MLFLOW_TRACKING_URI=server.uri)  # the next run sends what was left
    assert "warning" not in later.communicate(timeout=300)[0]
    assert server.rows("select step, value from metrics where key = 'loss' order by step") == [
        (step, 1 / step) for step in range(1, STEPS + 1)
    ]
    assert server.rows("select status, count(*) from runs group by status") == [("FINISHED", 4)]
    assert list((work / ".fieldguide" / "tracking").iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["http://me:secret@host:5000/api refused", "no http://me:s@cret@host:5000/api", "postgresql://me:secret@host/db and"],
)
def test_a_fault_is_told_without_the_password_of_the_address(text: str) -> None:
    told = in_words(OSError(text))
    assert "://host" in told
    assert "cret" not in told


@pytest.mark.slow
def test_a_server_with_passwords_gets_the_runs_of_who_knows_one(
    server: Server, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/team.md configures it."""
    users = server.folder / "users.ini"
    users.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{server.folder / 'users.db'}\n"
        "admin_username = admin\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": "correct horse battery", "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32}
    server.start("--app-name", "basic-auth", MLFLOW_AUTH_CONFIG_PATH=str(users), **secrets)
    output = trained_with(work, server.uri)
    assert store_warnings(output)[1] == 2, output
    assert "left out" not in output
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    refused = sync(work, server.uri)
    assert (refused.returncode, "are not sent" in refused.stderr) == (1, True)
    assert "wrong" not in refused.stderr
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse battery")
    sent = sync(work, server.uri)
    assert (sent.returncode, sent.stdout.splitlines()[-1]) == (0, "MLflow: 2 runs sent")
    server.holds_all()


@pytest.mark.slow
def test_a_server_that_accepts_and_never_answers_costs_seconds_at_the_end_alone(work: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        output = trained_with(work, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert store_warnings(output)[1] == 2, output
    assert output.index("trained") < output.index("are not sent")


def test_a_run_whose_process_was_killed_is_closed_by_the_next(root: Path) -> None:
    script = f"""{START}
import os, signal
with tracking.training_run(params) as run:
    run.log_metrics({{"loss": 1.0}}, step=1)
    print(run.key, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    key = python(script, root, DVC_ROOT=str(root)).communicate(timeout=60)[0].strip()
    start_run()
    run = stored(root, id_of(root, key))
    assert (run.info.status, run.data.metrics) == ("KILLED", {"loss": 1.0})


def test_a_journal_cut_off_in_a_line_gives_all_whole_ones_and_takes_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    journal = new_journal("a" * 32, "")
    journal.append("tag", name="a", value="1")
    whole = journal.entries.read_bytes()
    for cut in range(1, len(whole) - 1):
        journal.entries.write_bytes(whole + whole[:cut])
        assert [entry["value"] for entry, _ in journal.unsent()] == ["1"]
        journal.append("tag", name="b", value="2")
        assert [entry["value"] for entry, _ in journal.unsent() if "value" in entry] == ["1", "2"]
    (_, place), _ = journal.unsent()
    journal.mark(place)
    assert [entry["value"] for entry, _ in journal.unsent()] == ["2"]


def test_what_is_for_another_store_waits_for_it(root: Path, copied_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{closed_port()}")
    start_run()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    before = n_runs(root / "mlflow.db")
    start_run()
    assert n_runs(root / "mlflow.db") == before + 1
    (left,) = [journal for journal in unsent_journals() if journal.store.startswith("http")]
    assert "secret" not in left.store
    assert "127.0.0.1" in send_all()
    shutil.rmtree(left.folder)


def test_an_entry_that_the_store_will_never_take_is_named_and_the_rest_goes_on(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracking.training_run(PARAMS) as run:
        run.tag("", "a name that MLflow refuses")
        run.log_metrics({"loss": 1.0}, step=1)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(lines) == 1
    assert lines[0].endswith(f"; left out: tag of run {run.key}")
    assert stored(root, id_of(root, run)).data.metrics == {"loss": 1.0}


@pytest.mark.slow
def test_a_full_disk_ends_the_tracking_and_not_the_work(tmp_path: Path) -> None:
    script = f"""{START}
with tracking.training_run(params) as run:
    for step in range(2000):
        run.log_metrics({{f"m{{k}}": 1.0 for k in range(50)}}, step=step)
print("the work went on")
"""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = f'mount -t tmpfs -o size=600k tmpfs {shlex.quote(str(folder))} && exec "$0" -c "$1"'
    command = ["unshare", "-rm", "sh", "-c", mount, sys.executable, script]
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no user namespace for a small disk")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder), "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines()[-1] == "the work went on", ended.stderr
    assert ended.stderr.count("No space left on device; tracking is off for the rest of this run") == 1


@pytest.mark.slow
def test_nothing_is_told_to_mlflows_makers(tmp_path: Path) -> None:
    script = f"""{START}
with tracking.training_run(params):
    pass
from mlflow.telemetry import get_telemetry_client
print("client:", get_telemetry_client())
"""
    uri = f"http://127.0.0.1:{closed_port()}"  # before any call fails, the client of the telemetry has been chosen
    output, _ = python(script, tmp_path, DVC_ROOT=str(tmp_path), MLFLOW_TRACKING_URI=uri).communicate(timeout=300)
    assert output.splitlines()[-1] == "client: None"


@pytest.mark.slow
def test_four_processes_can_make_the_store_at_once(tmp_path: Path) -> None:
    script = f"""{START}
with tracking.training_run(params) as run:
    run.log_metrics({{"loss": 1.0}}, step=1)
"""
    processes = [python(script, tmp_path, DVC_ROOT=str(tmp_path)) for _ in range(4)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(outputs)
    assert not any("warning: MLflow" in output for output in outputs), "\n".join(outputs)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        assert store.execute("select status, count(*) from runs group by status").fetchall() == [("FINISHED", 4)]
        (location,) = store.execute("select artifact_location from experiments where name = 'fieldguide'").fetchone()
    assert location == (tmp_path / "mlartifacts").as_uri()


@pytest.mark.slow
def test_a_process_killed_while_it_makes_the_store_leaves_none(tmp_path: Path) -> None:
    script = f"{START}\nwith tracking.training_run(params): pass"
    process = python(script, tmp_path, DVC_ROOT=str(tmp_path))
    while not any(file.stat().st_size for file in tmp_path.glob(".mlflow.db.*.tmp")):  # its first tables are there
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert not (tmp_path / "mlflow.db").exists()
    assert "warning" not in python(script, tmp_path, DVC_ROOT=str(tmp_path)).communicate(timeout=300)[0]
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        assert store.execute("select status, count(*) from runs group by status").fetchall() == [("FINISHED", 2)]


def test_importing_tracking_does_not_import_mlflow(tmp_path: Path) -> None:
    process = python("import sys, fieldguide.tracking.run; print('mlflow' in sys.modules)", tmp_path)
    assert process.communicate(timeout=60)[0] == "False\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({}, {}),
        ({"a": 1}, {"a": 1}),
        ({"a": {"b": 1, "c": {"d": "x"}}, "e": [1, 2]}, {"a.b": 1, "a.c.d": "x", "e": [1, 2]}),
        ({"a": {}}, {}),
    ],
)
def test_nested_sections_become_dotted_names(tree: dict, expected: dict) -> None:
    assert tracking.flat(tree) == expected
