"""MLflow's model registry: promotes a run's exported model to a version of the registered model; fetches versions as files.

MLflow is imported late: a path of a file never waits for it, and `predict` does without.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fieldguide.core.errors import UserError, needs_extra
from fieldguide.core.files import file_hash, write_bytes
from fieldguide.core.paths import PREDICTIONS_CSV, models_cache, project_root
from fieldguide.tracking.store import MODEL, MODEL_NOTE, ONNX_TAG, STAGE_TAG, Store, all_pages, open_store

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities import Run as StoredRun
    from mlflow.entities.model_registry import ModelVersion as ModelVersion

NAME = "fieldguide"  # of the registered model
CHAMPION = "champion"  # the alias of the version in use
SCHEME = "models:/"
FILE = "model.onnx"  # in the folder of a logged model
UNKNOWN = (400, 404)  # HTTP statuses of a store without this model


@dataclass(frozen=True)
class ExportedRun:
    """A training run and the latest model that was exported from it."""

    run: "StoredRun"
    model: "LoggedModel"

    @property
    def name(self) -> str:
        return f"{self.run.info.run_name} (run {self.run.info.run_id[:8]})"

    @property
    def md5(self) -> str:
        """MD5 of the ONNX file."""
        return self.model.tags[ONNX_TAG]


class Registry:
    """The registered model, and the runs from which its versions come."""

    def __init__(self, store: Store) -> None:
        self.client, self.experiment_id = store.client, store.experiment_id

    def exported_runs(self) -> list[ExportedRun]:
        """Training runs with an exported model, the latest first."""
        logged = all_pages(self.client.search_logged_models, [self.experiment_id], f"name = '{MODEL}'")
        in_order = sorted(logged, key=lambda model: model.creation_timestamp)
        models = {model.source_run_id: model for model in in_order if model.status == "READY" and ONNX_TAG in model.tags}
        query, order = f"tags.`{STAGE_TAG}` = 'train'", ["attributes.start_time DESC"]
        runs = all_pages(self.client.search_runs, [self.experiment_id], query, order_by=order)
        return [ExportedRun(run, models[run.info.run_id]) for run in runs if run.info.run_id in models]

    def predictions(self, run_id: str, folder: Path) -> Path:
        """Downloads the predictions that evaluate logged to a run; raises `UserError` if there are none."""
        from mlflow.exceptions import MlflowException

        try:
            return Path(self.client.download_artifacts(run_id, f"evaluate/{PREDICTIONS_CSV.name}", str(folder)))
        except (MlflowException, OSError) as error:
            raise UserError(
                f"run {run_id}: evaluate/{PREDICTIONS_CSV.name} is not among its artifacts; with its model in the workspace"
                " run: dvc repro -f -s evaluate"
            ) from error

    def champion(self) -> "ModelVersion | None":
        """The version that has the alias."""
        registered = self.client.search_registered_models(f"name = '{NAME}'")
        number = registered[0].aliases.get(CHAMPION) if registered else None
        return self.client.get_model_version(NAME, number) if number else None

    def promote(self, exported: ExportedRun, tags: dict[str, str]) -> "ModelVersion":
        """Gives the alias to the version of this model, which is created if there is none."""
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException):  # it exists
            self.client.create_registered_model(NAME, description=f"Species on photographs, as an ONNX file. {MODEL_NOTE}")
        run_id, model = exported.run.info.run_id, exported.model
        same_file = f"name = '{NAME}' AND tags.`{ONNX_TAG}` = '{exported.md5}'"
        (version,) = self.client.search_model_versions(same_file, max_results=1) or [
            self.client.create_model_version(
                NAME, model.artifact_location, run_id, {ONNX_TAG: exported.md5}, model_id=model.model_id
            )
        ]
        for key, value in tags.items():
            self.client.set_model_version_tag(NAME, version.version, key, value)
        self.client.set_registered_model_alias(NAME, CHAMPION, version.version)
        return version

    def file(self, uri: str) -> Path:
        """The model file of `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `models:/NAME/latest` or `models:/ID`."""
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.utils.models import get_model_name_and_version

        try:
            model_id, *of_name = get_model_name_and_version(self.client, uri)
            if of_name:
                version = self.client.get_model_version(model_id, *of_name)
                if version.model_id is None:  # registered by hand, from a run's artifacts
                    location = self.client.get_model_version_download_uri(version.name, version.version)
                    return self._download(location, version.tags.get(ONNX_TAG, ""))
                model_id = version.model_id
            model = self.client.get_logged_model(model_id)
        except MlflowException as error:
            if error.get_http_status_code() not in UNKNOWN:
                raise
            raise UserError(f"{error}; a run's model is registered by: python -m fieldguide champion") from error
        return self.model_file(model)

    def model_file(self, model: "LoggedModel") -> Path:
        return self._download(model.artifact_location, model.tags.get(ONNX_TAG, ""))

    def _download(self, location: str, md5: str) -> Path:
        """The file in the project's cache, named after its content; downloaded unless it is there.

        md5: of the file as it was logged, or empty. Raises `UserError` if the file has changed since.
        """
        from mlflow.artifacts import download_artifacts

        cached = models_cache() / f"{md5}.onnx"
        if md5 and cached.is_file() and file_hash(cached, "md5") == md5:
            return cached
        artifact = f"{location}/{FILE}"
        with TemporaryDirectory() as folder:
            file = Path(download_artifacts(artifact, dst_path=folder, tracking_uri=self.client.tracking_uri))
            file_md5 = file_hash(file, "md5")
            if md5 and file_md5 != md5:
                raise UserError(
                    f"{artifact}: its MD5 is {file_md5}, but {md5} was logged; log it again: dvc repro -f -s export_onnx"
                )
            cached = models_cache() / f"{file_md5}.onnx"
            write_bytes(cached, file.read_bytes())
        return cached


@contextmanager
def open_registry() -> Iterator[Registry]:
    """The registry of the project's tracking store; raises `UserError` if MLflow or the store is missing."""
    with needs_extra("the model registry", "train"):
        import mlflow  # noqa: F401
    database = project_root() / "mlflow.db"
    if not os.environ.get("MLFLOW_TRACKING_URI") and not database.exists():
        raise UserError(f"{database}: no tracking store; create a run with dvc repro, or set MLFLOW_TRACKING_URI")
    with open_store() as store:
        yield Registry(store)


def is_registered(model: Path) -> bool:
    """Whether it is `models:/…` and not a path."""
    return model.as_posix().startswith(SCHEME)


def model_file(model: Path) -> Path:
    """A path as it is; for `models:/…` the verified local file, or `UserError` if the registry or the model is missing."""
    if not is_registered(model):
        return model
    try:
        with open_registry() as registry:
            return registry.file(model.as_posix())
    except UserError as error:
        raise UserError(f"{model}: {error}") from error
