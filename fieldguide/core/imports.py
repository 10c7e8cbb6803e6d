"""The project files that a script imports, on which its outputs can depend."""

import ast
from collections.abc import Iterator
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
            for alias in node.names:
                yield from _files_of(alias.name.split("."), root)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ModuleNotFoundError(f"{file}: a relative import, which import_closure does not follow")
            module = (node.module or "").split(".")
            yield from _files_of(module, root)
            for alias in node.names:  # `from package import module`
                if module[0] in PACKAGES and _module_file([*module, alias.name], root):
                    yield from _files_of([*module, alias.name], root)


def _files_of(module: list[str], root: Path) -> Iterator[Path]:
    """The module's file and the `__init__.py` of its packages; nothing for a library."""
    if module[0] not in PACKAGES:
        return
    for depth in range(1, len(module) + 1):
        file = _module_file(module[:depth], root)
        if file is None:
            raise ModuleNotFoundError(f"{'.'.join(module)} has no file under {root}")
        yield file


def _module_file(module: list[str], root: Path) -> Path | None:
    path = root.joinpath(*module)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)
