"""The notebook: in git without outputs, and it runs from top to bottom in a kernel, on a small sample."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest

from support import ROOT
from support.forked import python_folder
from support.projects import BIN, TINY, copy_project, run

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
SMALL = ["model.image_px=32", "train.decode_px=32", "train.epochs=3", "train.head_epochs=3"]


def test_the_notebook_has_no_outputs_and_is_valid() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert [cell.metadata.get("tags") for cell in cells].index(["parameters"]) == 0


def executed(project: Path, parameters: str) -> nbformat.NotebookNode:
    """The notebook after a run in `project`, its parameters as given."""
    notebook = nbformat.read(project / "notebooks" / NOTEBOOK.name, as_version=4)
    (cell,) = [cell for cell in notebook.cells if cell.metadata.get("tags") == ["parameters"]]
    cell.source += f"\n{parameters}"
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(project / "notebooks")}})
    return client.execute()


def texts(notebook: nbformat.NotebookNode) -> str:
    """All that the cells printed or displayed as text."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(
        output.get("text", "") or output.get("data", {}).get("text/html", "") or output.get("data", {}).get("text/markdown", "")
        for output in outputs
    )


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_on_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([str(python_folder()), str(BIN), os.environ["PATH"]]))
    project = tmp_path / "a field guide"
    copy_project(project, TINY)
    notebook = executed(project, f"RECIPE = 'quick'\nSETTINGS = {SMALL}")
    said = texts(notebook)
    assert "photographs: the sample | device: CPU" in said
    assert "test accuracy" in said
    assert "stronger-decay" in said
    images = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(images) >= 3  # curves, mistakes, probabilities
    assert (project / "metrics" / "report.html").exists()
    assert run(project, "dvc", "exp", "list", "--name-only").stdout.split() == ["first", "stronger-decay"]
