"""The documents say what the code says."""

import importlib.util
import re
from collections.abc import Iterator

from conftest import ROOT

from fieldguide.params import Params


def test_the_reference_of_parameters_is_that_of_this_checkout() -> None:
    spec = importlib.util.spec_from_file_location("parameters", ROOT / "docs" / "parameters.py")
    parameters = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(parameters)
    page = parameters.page((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8") == page, "run: python docs/parameters.py"
    rows = re.findall(r"^\| `([\w.]+)` \| `[^`]+` \| [^|]+ \| [^|]+ \|$", page, re.MULTILINE)
    assert sorted(rows) == sorted(keys(Params))


def keys(section: type) -> Iterator[str]:
    """`path`, `features.image`, …: the keys below the sections of params.yaml."""
    for name, field in section.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        if inner is None:
            yield name
        else:
            yield from (f"{name}.{key}" if section is not Params else key for key in keys(field.annotation))


def test_every_key_named_in_the_documents_exists() -> None:
    known = {f"{section}.{key}" for section, field in Params.model_fields.items() for key in keys(field.annotation)}
    for source in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        named = re.findall(r"-S '?([\w.]+)=", source.read_text(encoding="utf-8"))
        assert set(named) - {"section.key"} <= known, source
