"""The project files that a script imports, on which its outputs can depend."""

import ast
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

PACKAGES = ("fieldguide", "stages")  # top-level packages of the project


def import_closure(script: Path, root: Path) -> set[Path]:
    """`script` and every project file below `root` that it imports, directly or indirectly.

    Includes imports inside functions and under `if TYPE_CHECKING`, and the `__init__.py` of each package. Raises
    `ModuleNotFoundError` for a project import without a file: the closure would be incomplete.
    """
    closure: set[Path] = set()
    waiting = [script]
    while waiting:
        file = waiting.pop()
        if file not in closure:
            closure.add(file)
            waiting += direct_imports(file, root)
    return closure


def direct_imports(file: Path, root: Path) -> Iterator[Path]:
    """The project files that the import statements of one file name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.module is None or node.level:
                raise ModuleNotFoundError(f"{file}: a relative import, which import_closure does not follow")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [node.module, *(name for name in names if _module_file(name, root))]  # `from package import module`
        else:
            continue
        for module in modules:
            if module.split(".")[0] in PACKAGES:
                for name in accumulate(module.split("."), "{}.{}".format):  # its packages, and itself
                    if not (imported := _module_file(name, root)):
                        raise ModuleNotFoundError(f"{name} has no file under {root}")
                    yield imported


def _module_file(module: str, root: Path) -> Path | None:
    path = root / module.replace(".", "/")
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)
