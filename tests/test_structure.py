"""The house rules that a reader relies on: exact dependencies, imports in one direction, one owner for each heavy library."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import fieldguide
from fieldguide import report
from fieldguide.layout import SPLITS
from fieldguide.params import Params
from fieldguide.paths import GALLERY_JSON, RAW, confusion_csv, stage_metrics

STAGES = ("download", "split_check", "train", "evaluate", "export_onnx", "benchmark", "report")
OWNERS = {
    "mlflow": {"store", "tracking", "runs", "registry"},
    "matplotlib": {"plots"},
    "kaggle": {"kaggle"},
    "onnxruntime": {"classifier", "quantize"},
    "PIL": {"images", "sample", "peers"},
}
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def own_imports(source: Path) -> set[str]:
    """The project's files that a file imports, as dvc.yaml would name them."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fieldguide":
            found |= {f"fieldguide/{alias.name}.py" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fieldguide."):
            found.add(node.module.replace(".", "/") + ".py")
    return found


def import_closure(file: str) -> set[str]:
    """`file` and all that it imports, directly or not."""
    seen: set[str] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += own_imports(ROOT / current)
    return seen


def third_party(source: Path) -> set[str]:
    """Top-level names of the packages that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def reading_order() -> list[str]:
    """The modules as the package's docstring lists them."""
    listed = fieldguide.__doc__.split("above it:")[1]
    return re.findall(r"\w+", listed)


def test_pipeline_has_its_stages_in_order() -> None:
    assert tuple(PIPELINE) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_deps_name_exactly_the_code_that_a_stage_imports(stage: str) -> None:
    named = {dep for dep in PIPELINE[stage]["deps"] if dep.endswith(".py")}
    assert named == import_closure(f"stages/{stage}.py")


DATA_DEPS = {
    "download": set(),
    "split_check": {"data/raw"},
    "train": {"data/raw", "data/manifest.csv"},
    "evaluate": {"data/raw", "data/manifest.csv", "models/model.safetensors"},
    "export_onnx": {
        "data/raw",
        "data/manifest.csv",
        "models/model.safetensors",
        "models/calibration.safetensors",
        "metrics/evaluate.json",
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
    "RAW": "data/raw",
    "MANIFEST": "data/manifest.csv",
    "CHECKPOINT": "models/model.safetensors",
    "CALIBRATION": "models/calibration.safetensors",
    "EVALUATE": "metrics/evaluate.json",
    "ONNX": "models/model.onnx",
    "ONNX_FP16": "models/model_fp16.onnx",
    "ONNX_INT8": "models/model_int8.onnx",
}


@pytest.mark.parametrize("stage", DATA_DEPS)
def test_deps_name_exactly_the_artifacts_that_a_stage_reads(stage: str) -> None:
    assert {dep for dep in PIPELINE[stage]["deps"] if not dep.endswith(".py")} == DATA_DEPS[stage]
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    made = {next(iter(out)) if isinstance(out, dict) else out for out in PIPELINE[stage].get("outs", [])}
    assert {path for name, path in ARTIFACTS.items() if name in named} - made == DATA_DEPS[stage]


def test_deps_of_the_report_are_all_that_it_reads_but_the_lock_file() -> None:
    read = {*report.TABLES.values(), *report.PNGS.values(), *report.HASHED, GALLERY_JSON, RAW}
    read |= {stage_metrics(stage) for stage in report.STAGES} | {confusion_csv(split) for split in SPLITS}
    templates = {f"fieldguide/templates/{file.name}" for file in report.TEMPLATES.iterdir()}
    assert {dep for dep in PIPELINE["report"]["deps"] if not dep.endswith(".py")} == {str(path) for path in read} | templates


@pytest.mark.parametrize("stage", STAGES)
def test_params_name_exactly_the_sections_that_a_stage_reads(stage: str) -> None:
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params"
    }
    assert read <= set(Params.model_fields)
    assert set(PIPELINE[stage]["params"]) == read - {"runtime"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_described_and_run_as_a_module(stage: str) -> None:
    assert PIPELINE[stage]["cmd"] == f"python -m stages.{stage}"
    assert len(PIPELINE[stage]["desc"]) > 20


def test_the_package_file_holds_no_code_on_which_a_stage_could_depend() -> None:
    for package in ("fieldguide", "stages"):
        body = ast.parse((ROOT / package / "__init__.py").read_text()).body
        assert all(isinstance(node, ast.Expr) for node in body)


def test_reading_order_lists_every_module_once() -> None:
    order = reading_order()
    assert sorted(order) == sorted(path.stem for path in (ROOT / "fieldguide").glob("*.py") if not path.stem.startswith("__"))


@pytest.mark.parametrize("module", reading_order())
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    order = reading_order()
    imported = {Path(file).stem for file in own_imports(ROOT / "fieldguide" / f"{module}.py")}
    assert imported <= set(order[: order.index(module)])


def test_stages_never_import_each_other() -> None:
    for stage in STAGES:
        assert "stages" not in third_party(ROOT / "stages" / f"{stage}.py")


@pytest.mark.parametrize("library", OWNERS)
def test_a_heavy_library_has_its_owner(library: str) -> None:
    files = [*(ROOT / "fieldguide").glob("*.py"), *(ROOT / "stages").glob("*.py")]
    users = {file.stem for file in files if library in third_party(file)}
    allowed = OWNERS[library] | ({"benchmark"} if library == "onnxruntime" else set())  # which writes its version down
    assert users <= allowed


@pytest.mark.parametrize("stage", ["download", "split_check"])
def test_data_stages_reach_no_torch(stage: str) -> None:
    for file in import_closure(f"stages/{stage}.py"):
        assert third_party(ROOT / file).isdisjoint({"torch", "torchvision", "mlflow", "dvc"})


TESTED_BY = {
    "errors": "files",
    "cores": "params",
    "paths": "structure",
    "checks": "split_check",
    "fit": "train",
    "journal": "tracking",
    "store": "tracking",
    "sender": "tracking",
    "champion": "registry",
}


def test_every_module_has_its_test_file_or_is_named_with_another() -> None:
    files = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert set(reading_order()) - files == set(TESTED_BY)
    assert set(TESTED_BY.values()) <= files


def test_dvc_can_restore_every_stage_but_download_and_report_from_its_run_cache() -> None:
    """An output outside of the cache that is neither metric nor plot, or one that persists, switches it off for its stage."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outs = {
        name: [next(iter(out.values())) for out in stage.get("outs", []) if isinstance(out, dict)]
        for name, stage in stages.items()
    }
    assert {name for name in outs if not all(out.get("cache", True) for out in outs[name])} == {"report"}  # its card is for git
    assert {name for name in outs if any(out.get("persist") for out in outs[name])} == {"download"}  # guards a user's files
