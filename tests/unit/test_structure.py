"""The house rules that a reader relies on: exact dependencies, imports in one direction, one owner for each heavy library."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from fieldguide.core.imports import direct_imports, import_closure
from fieldguide.core.params import Params
from fieldguide.core.paths import TAXONOMY
from fieldguide.report import facts as report
from support import ROOT
from support.structure import PACKAGES, third_party

STAGES = ("download", "embed", "split_check", "label_check", "train", "evaluate", "export_onnx", "benchmark", "report")
WITHOUT_EFFECT = {"tracking"}  # on outputs: tests/e2e/test_train.py holds that they are the same bytes without a store
OWNERS = {  # the only modules that import a heavy library
    "mlflow": {"tracking/store.py", "tracking/run.py", "tracking/registry.py"},
    "matplotlib": {"report/plots.py", "report/figures.py", "report/data_figures.py", "report/page.py"},
    "kaggle": {"sources/kaggle.py"},
    "onnxruntime": {"onnx/classifier.py", "onnx/quantize.py"},
    "PIL": {"core/colours.py", "core/images.py", "sources/sample.py", "benchmark/reference.py"},
    "pillow_heif": {"core/images.py"},
    "cv2": {"checks/near_duplicates.py"},
    "numba": {"checks/hash_loops.py"},
    "optuna": {"commands/search.py"},
    "flask": {"web/app.py", "web/uploads.py", "review/app.py"},
}
LIBRARY = ROOT / "fieldguide"
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def package_of(file: Path) -> str:
    """`core` for fieldguide/core/files.py; the file's name for one at the top."""
    return file.relative_to(LIBRARY).parts[0]


def packages_of(stage: str) -> set[str]:
    """The packages of which a stage imports anything, directly or not, but those that change no output."""
    closure = import_closure(ROOT / "stages" / f"{stage}.py", ROOT)
    return {package_of(file) for file in closure if file.is_relative_to(LIBRARY)} - {"__init__.py"} - WITHOUT_EFFECT


def data_deps(stage: str) -> set[str]:
    """What a stage reads but code."""
    return {dep for dep in PIPELINE[stage]["deps"] if not dep.startswith(("stages/", "fieldguide/"))}


def test_pipeline_has_its_stages_in_order() -> None:
    assert tuple(PIPELINE) == STAGES
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 230


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_packages_that_a_stage_imports(stage: str) -> None:
    named = {dep for dep in PIPELINE[stage]["deps"] if dep.startswith(("stages/", "fieldguide/"))}
    assert named == {f"stages/{stage}.py", *(f"fieldguide/{package}" for package in packages_of(stage))}


DATA_DEPS = {
    "download": set(),
    "embed": {"data/raw"},
    "split_check": {"data/raw", "data/corrections.csv"},
    "label_check": {"data/raw", "data/manifest.csv", "data/embeddings.safetensors"},
    "train": {"data/raw", "data/manifest.csv"},
    "evaluate": {"data/raw", "data/manifest.csv", "data/taxonomy.csv", "models/model.safetensors"},
    "export_onnx": {
        "data/raw",
        "data/manifest.csv",
        "models/model.safetensors",
        "models/calibration.safetensors",
        "metrics/predictions.csv",
    },
    "benchmark": {
        "data/raw",
        "data/manifest.csv",
        "models/model.safetensors",
        "models/calibration.safetensors",
        "models/model.onnx",
        "models/model_fp16.onnx",
        "models/model_int8.onnx",
    },
}
ARTIFACTS = {
    "TAXONOMY": "data/taxonomy.csv",
    "RAW": "data/raw",
    "CORRECTIONS": "data/corrections.csv",
    "EMBEDDINGS": "data/embeddings.safetensors",
    "MANIFEST": "data/manifest.csv",
    "CHECKPOINT": "models/model.safetensors",
    "CALIBRATION": "models/calibration.safetensors",
    "PREDICTIONS_CSV": "metrics/predictions.csv",
    "ONNX": "models/model.onnx",
    "ONNX_FP16": "models/model_fp16.onnx",
    "ONNX_INT8": "models/model_int8.onnx",
}


@pytest.mark.parametrize("stage", DATA_DEPS)
def test_deps_name_exactly_the_artifacts_that_a_stage_reads(stage: str) -> None:
    assert data_deps(stage) == DATA_DEPS[stage]
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    made = {next(iter(out)) if isinstance(out, dict) else out for out in PIPELINE[stage].get("outs", [])}
    assert {path for name, path in ARTIFACTS.items() if name in named} - made == DATA_DEPS[stage]


def test_deps_of_the_report_are_all_that_it_reads_but_the_lock_file() -> None:
    assert data_deps("report") == set(map(str, (*report.INPUTS, TAXONOMY)))  # which may be missing


@pytest.mark.parametrize("stage", STAGES)
def test_params_name_exactly_the_sections_that_a_stage_reads(stage: str) -> None:
    read = {
        node.attr
        for file in import_closure(ROOT / "stages" / f"{stage}.py", ROOT)
        if file.is_relative_to(ROOT / "stages") or package_of(file) not in WITHOUT_EFFECT | {"core"}
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params"
    }
    assert read <= set(Params.model_fields)
    assert set(PIPELINE[stage]["params"]) == read - {"runtime"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_thin_script(stage: str) -> None:
    assert len((ROOT / "stages" / f"{stage}.py").read_text().splitlines()) <= 100


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_described_and_run_as_a_module(stage: str) -> None:
    assert PIPELINE[stage]["cmd"] == f"python -m stages.{stage}"
    assert len(PIPELINE[stage]["desc"]) > 20


def test_the_package_files_hold_no_code_on_which_a_stage_could_depend() -> None:
    for file in [ROOT / "stages" / "__init__.py", *LIBRARY.rglob("__init__.py")]:
        assert all(isinstance(node, ast.Expr) for node in ast.parse(file.read_text()).body), file


def test_the_packages_are_those_of_the_table() -> None:
    assert {path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(PACKAGES)
    assert {path.name for path in LIBRARY.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_those_before_it(package: str) -> None:
    order = list(PACKAGES)
    assert PACKAGES[package] <= set(order[: order.index(package)])
    for file in (LIBRARY / package).rglob("*.py"):
        imported = {package_of(path) for path in direct_imports(file, ROOT)} - {"__init__.py"}
        assert imported <= PACKAGES[package] | {"core", package}, file


@pytest.mark.parametrize("stage", ["download", "split_check", "export_onnx", "benchmark"])
def test_a_change_of_a_picture_does_not_run_a_stage_again(stage: str) -> None:
    assert "report" not in packages_of(stage)


def test_stages_never_import_each_other() -> None:
    for stage in STAGES:
        assert "stages" not in third_party(ROOT / "stages" / f"{stage}.py")


@pytest.mark.parametrize("library", OWNERS)
def test_a_heavy_library_has_its_owners(library: str) -> None:
    users = {file.relative_to(LIBRARY).as_posix() for file in LIBRARY.rglob("*.py") if library in third_party(file)}
    assert users == OWNERS[library]


@pytest.mark.parametrize("stage", ["download", "split_check"])
def test_data_stages_reach_no_torch(stage: str) -> None:
    for file in import_closure(ROOT / "stages" / f"{stage}.py", ROOT):
        assert third_party(file).isdisjoint({"torch", "torchvision", "mlflow", "dvc"})


def test_dvc_can_restore_every_stage_but_download_and_report_from_its_run_cache() -> None:
    """An output outside of the cache that is neither metric nor plot, or one that persists, switches it off for its stage."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outs = {
        name: [next(iter(out.values())) for out in stage.get("outs", []) if isinstance(out, dict)]
        for name, stage in stages.items()
    }
    assert {name for name in outs if not all(out.get("cache", True) for out in outs[name])} == {"report"}  # its card is for git
    assert {name for name in outs if any(out.get("persist") for out in outs[name])} == {"download"}  # guards a user's files


def test_a_plot_shows_a_declared_file_and_no_table_that_grows() -> None:
    """DVC's page draws every file that a stage declares as a plot, so a table with a row for each class is none.

    It draws each of these tables once by itself, and again in each chart of several columns: no column twice.
    """
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    declared = [plot for stage in PIPELINE.values() for plot in stage.get("plots", [])]
    names = {next(iter(plot)) if isinstance(plot, dict) else plot for plot in declared}
    assert names.isdisjoint({"metrics/classes.csv", "metrics/per_class.csv", "metrics/confused_pairs.csv"})
    single = {name: facts for plot in declared if isinstance(plot, dict) for name, facts in plot.items()}
    assert single.keys() == {name for name in names if name.endswith(".csv")}
    assert all({"template", "x", "y", "title"} <= facts.keys() for facts in single.values())
    together = [one for plot in content["plots"] for one in plot.values()]
    drawn = [(file, column) for one in together for file, columns in one["y"].items() for column in columns]
    drawn += [(name, facts["y"]) for name, facts in single.items()]
    assert len(set(drawn)) == len(drawn)
    assert {file for file, _ in drawn} <= names
    own = {path.stem for path in (ROOT / ".dvc" / "plots").glob("*.json")}
    assert own == {one["template"] for one in [*together, *single.values()]} - {"linear", "scatter", "bar_horizontal"}


def test_no_test_module_imports_another() -> None:
    modules = {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    assert len(modules) == len(list((ROOT / "tests").rglob("test_*.py")))  # each file has a name of its own
    for file in (ROOT / "tests").rglob("*.py"):
        imported = re.findall(r"(?m)^\s*(?:from|import) ([\w.]+)", file.read_text(encoding="utf-8"))  # scripts in strings too
        assert {part for name in imported for part in name.split(".")}.isdisjoint(modules | {"conftest"}), file


def test_no_two_classes_of_the_library_share_a_name() -> None:
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in LIBRARY.rglob("*.py")]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, n in names.items() if n > 1] == []
