"""`fieldguide recipe`: writes a recipe's values, or single values, into params.yaml; comments and order stay.

A recipe is a YAML file with the sections and keys of params.yaml. Keys of `RESET` that it does not name are set as in
recipes/scratch.yaml, which names all of them; other keys (the data, how they are split, the runtime) stay as they are.
"""

import argparse
import difflib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, PlainScalarString

from fieldguide.core.errors import UserError
from fieldguide.core.files import write_bytes
from fieldguide.core.params import YamlLoader, allowed, check_params, read_params, read_yaml

PARAMS = Path("params.yaml")
RECIPES = Path("recipes")
BASE = "scratch"
RESET = ("model", "train", "augment", "evaluate")


def recipe(args: argparse.Namespace) -> None:
    """Lists the recipes without arguments; otherwise writes params.yaml and prints what changed.

    Raises `UserError` without writing anything for an unknown recipe or key, or a value that is not allowed.
    """
    if not args.words:
        for name, file in sorted(_files().items()):
            print(f"{name:22} {_first_comment(file)}")
        return
    has_name = "=" not in args.words[0]
    settings = args.words[has_name:]
    read_params(PARAMS)  # names the file's own faults
    editor = YAML()
    editor.preserve_quotes, editor.width = True, 10_000
    text = PARAMS.read_text(encoding="utf-8")
    document = editor.load(text)
    before = dict(_leaves(document))
    if has_name:
        _apply_recipe(document, args.words[0])
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"{setting}: expected KEY=VALUE, for example data.path=photos.zip")
        _put(document, key.strip(), _parsed(key.strip(), value), setting)
    check_params(_plain(document), PARAMS)
    written = io.StringIO()
    editor.dump(document, written)
    changes = [(key, before[key], value) for key, value in _leaves(document) if before[key] != value]
    if changes:
        write_bytes(PARAMS, written.getvalue().encode())
    for key, old, new in changes:
        print(f"{key}: {_shown(old)} -> {_shown(new)}")
    print(f"{len(changes)} values changed in {PARAMS}" if changes else f"{PARAMS} has these values already")


def _apply_recipe(document: Any, name: str) -> None:
    base, file = _file(BASE), _file(name)
    for key, value in _leaves(read_yaml(base)):
        if key.partition(".")[0] in RESET:
            _put(document, key, value, str(base))
    for key, value in _leaves(read_yaml(file) or {}):
        _put(document, key, value, str(file))
    check_params(_plain(document), file)


def _files() -> dict[str, Path]:
    """The project's recipes by name; raises `UserError` outside of a project."""
    if not PARAMS.is_file():
        raise UserError(f"{PARAMS} does not exist here; run the command in the folder of the project")
    return {file.stem: file for file in RECIPES.glob("*.yaml")}


def _file(name: str) -> Path:
    """The file of a recipe, which may be given by its path; raises `UserError` if there is none."""
    files = _files()
    if name in files:
        return files[name]
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        return Path(name)
    close = difflib.get_close_matches(name, files)
    advice = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(files)) or 'none'}, or the path of a file"
    raise UserError(f"{name or repr(name)} is not a recipe in {RECIPES}/; {advice}")


def _first_comment(file: Path) -> str:
    return file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def _leaves(section: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings."""
    if not isinstance(section, dict):
        raise UserError(f"{path or 'a recipe'} must be a section with keys, got {section!r}")
    for key, value in section.items():
        inner = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict):
            yield from _leaves(value, inner)
        else:
            yield inner, value


def _put(document: Any, key: str, value: Any, source: str) -> None:
    """Sets a value in place; raises `UserError`, whose text begins with `source`, for an unknown key."""
    known = dict(_leaves(document))
    if key not in known:
        close = difflib.get_close_matches(key, known)
        raise UserError(f"{source}: {key} is not a key of {PARAMS}" + (f"; did you mean {', '.join(close)}?" if close else ""))
    *sections, name = key.split(".")
    for section in sections:
        document = document[section]
    if document[name] != value:  # otherwise it stays as it is written
        document[name] = _scalar(value)
        comments = [tokens[2].start_mark for tokens in document.ca.items.values() if tokens[2]]
        if name in document.ca.items and document.ca.items[name][2]:  # a longer value has moved it
            document.ca.items[name][2].start_mark.column = min(mark.column for mark in comments)


def _scalar(value: Any) -> Any:
    """A value as it is to be written: text in quotes if it would be read as something else."""
    if not isinstance(value, str):
        return value
    try:
        is_plain = yaml.load(value, Loader=YamlLoader) == value
    except yaml.YAMLError:
        is_plain = False
    return PlainScalarString(value) if is_plain else DoubleQuotedScalarString(value)


def _parsed(key: str, value: str) -> Any:
    """The value of a `KEY=VALUE`: text as it stands where the key takes only text, otherwise as in YAML."""
    if allowed(key).get("type") == "string" and "enum" not in allowed(key):
        return value
    try:
        return yaml.load(value, Loader=YamlLoader)
    except yaml.YAMLError:
        return value


def _plain(document: Any) -> Any:
    """The document as read from its own text."""
    text = io.StringIO()
    YAML().dump(document, text)
    return yaml.load(text.getvalue(), Loader=YamlLoader)


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, list) else f'"{value}"' if value == "" else str(value)
