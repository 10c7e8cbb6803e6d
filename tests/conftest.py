"""What tests share: photographs drawn on the spot, and folders of the real archives where a machine has them."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import REAL_DATA, ROOT
from support.archives import write_folder
from support.projects import built_once
from support.stages import OLD, MakeProject, with_settings

for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:  # an inherited DVC_ROOT would be kept
    del os.environ[name]


LONGEST = (  # the first builds the project that later ones copy
    "test_pipeline",
    "test_readme",
    "test_faults",
    "test_tracking",
    "test_notebook",
    "test_gpu_benchmark",
    "test_pillow_images",
    "test_distributed",
    "test_resume",
    "test_experiments",
    "test_onnx_export",
    "test_search",
    "test_download",
    "test_team",
    "test_label_check",
    "test_models",
    "test_evaluate",
    "test_train",
    "test_loop",
    "test_cross_validation",
    "test_label_tables",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that processes side by side end together.

    Tests on real photographs are skipped, with the reason, where the archives are absent.
    """
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    if not REAL_DATA.is_dir():
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason=f"the archives of real photographs are not at {REAL_DATA}"))


@pytest.fixture(scope="session")
def built_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project on which `dvc repro` has run, the same for all test processes; tests work on copies of it."""
    own = tmp_path_factory.getbasetemp()
    return built_once(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture
def make_jpeg() -> Callable[..., bytes]:
    """`make_jpeg(seed, width, height)`: a JPEG of smooth random colours, the same bytes for the same arguments."""

    def make(seed: int = 0, width: int = 64, height: int = 64, quality: int = 90) -> bytes:
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
        return stream.getvalue()

    return make


@pytest.fixture
def make_project(tmp_path: Path) -> MakeProject:
    """`make_project(**{"data.path": "photos"})`: a folder with this checkout's code, other params and old raw data."""

    def make(folder: str = "my project", **settings: object) -> Path:
        project = tmp_path / folder
        write_folder(project / "data" / "raw", OLD)
        for name in ("fieldguide", "stages"):
            (project / name).symlink_to(ROOT / name)
        (project / "params.yaml").write_text(with_settings({"runtime.workers": 1} | settings), encoding="utf-8")
        return project

    return make
