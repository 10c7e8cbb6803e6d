"""What a script depends on: every file of the project that it imports, in whatever form, and nothing else."""

from pathlib import Path

import pytest

from fieldguide.core.imports import import_closure

FILES = {
    "stages/__init__.py": "",
    "stages/train.py": "import json\nfrom fieldguide.training.fit import fit\ndef main():\n    import fieldguide.core.late\n",
    "fieldguide/__init__.py": "",
    "fieldguide/core/__init__.py": "",
    "fieldguide/core/errors.py": "",
    "fieldguide/core/late.py": "from fieldguide.network import (\n    models,\n    device as where,\n)\n",
    "fieldguide/network/__init__.py": "",
    "fieldguide/network/models.py": "import torch\n",
    "fieldguide/network/device.py": "if TYPE_CHECKING:\n    from fieldguide.core import errors\n",
    "fieldguide/network/unused.py": "",
    "fieldguide/training/__init__.py": "",
    "fieldguide/training/fit.py": "",
    "fieldguide/report/__init__.py": "",
    "fieldguide/report/page.py": "from fieldguide.training.fit import fit\n",
}
IN = set(FILES) - {"fieldguide/network/unused.py", "fieldguide/report/__init__.py", "fieldguide/report/page.py"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_imports_of_every_form_are_followed_and_what_is_not_imported_is_left_out(root: Path) -> None:
    closure = {file.relative_to(root).as_posix() for file in import_closure(root / "stages" / "train.py", root)}
    assert closure == IN - {"stages/__init__.py"}


@pytest.mark.parametrize("missing", ["fieldguide/training/fit.py", "fieldguide/core/late.py", "fieldguide/network/__init__.py"])
def test_an_import_without_a_file_is_an_error_and_no_smaller_closure(root: Path, missing: str) -> None:
    (root / missing).unlink()
    with pytest.raises(ModuleNotFoundError, match="has no file under"):
        import_closure(root / "stages" / "train.py", root)


def test_a_relative_import_is_refused(root: Path) -> None:
    (root / "fieldguide/training/fit.py").write_text("from . import loop\n")
    with pytest.raises(ModuleNotFoundError, match="relative import"):
        import_closure(root / "stages" / "train.py", root)
