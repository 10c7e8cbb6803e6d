"""What is logged reaches MLflow: a name that it refuses would lose every figure of the same entry."""

from pathlib import Path

import numpy as np
import pytest

from fieldguide.core.names import flat
from fieldguide.evaluation.metrics import band_metrics
from fieldguide.tracking import run as tracking
from fieldguide.tracking.store import DEFAULTS, Store, storable
from support.settings import PARAMS

pytestmark = [
    pytest.mark.filterwarnings(  # MLflow's own tables use a loader that SQLAlchemy 2.1 deprecates
        "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),  # of MLflow's own code, on import
]

NAMES = ["evaluate.test.by_class_size.101+.accuracy", "größe (px)", "a#b=c", "100 %", "x.y_z-1/2"]
STORED = ["evaluate.test.by_class_size.101_.accuracy", "größe _px_", "a_b_c", "100 _", "x.y_z-1/2"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in DEFAULTS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Store()


def test_names_that_mlflow_refuses_are_changed_and_no_figure_is_lost(store: Store) -> None:
    assert [storable(name) for name in NAMES] == STORED
    run_id = store.client.create_run(store.experiment_id).info.run_id
    values = {name: float(number) for number, name in enumerate(NAMES)}
    store.add(run_id, dict.fromkeys(NAMES, "set"), values, 0)
    data = store.client.get_run(run_id).data
    assert data.metrics == dict(zip(STORED, values.values(), strict=True))
    assert data.params == dict.fromkeys(STORED, "set")


def test_accuracy_of_classes_of_every_size_is_logged_without_a_warning(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = np.array([0, 3, 10, 50, 5000])
    bands = {name: band.as_dict() for name, band in band_metrics(np.arange(5), np.ones(5, bool), sizes).items()}
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(b"a model")
    for _ in range(2):  # the second time the run is found, whose params MLflow would refuse to change
        with tracking.stage_run("evaluate", PARAMS.evaluate, checkpoint) as run:
            run.log({"test": {"by_class_size": bands}})
    assert capsys.readouterr().err == ""
    expected = {f"evaluate.test.by_class_size.{storable(name)}": value for name, value in flat(bands).items()}
    assert len(expected) == 25
    found = store.client.search_runs([store.experiment_id])
    assert [run.data.metrics for run in found] == [expected, expected]
