"""The documents say what the code says."""

import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions

from fieldguide.core.params import Params
from support import ROOT
from support.structure import PACKAGES, third_party


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


DEPENDENCIES = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
NOT_PERMISSIVE = re.compile(r"GPL|General Public|MPL|Mozilla|EPL|CDDL|SSPL|Proprietary", re.IGNORECASE)


def declared() -> dict[str, str]:
    """Each direct dependency of pyproject.toml with its extra or group; those of every installation are `base`."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = content["project"]
    groups = {"base": project["dependencies"], **project["optional-dependencies"], **content["dependency-groups"]}
    names = {re.match(r"[\w.-]+", text)[0]: group for group, texts in groups.items() for text in texts}
    return {name: group for name, group in names.items() if name != project["name"]}  # an extra that includes another


def terms(package: str) -> str:
    """What an installed package's metadata say of its licence."""
    facts = metadata(package)
    classifiers = [line for line in facts.get_all("Classifier", []) if line.startswith("License")]
    return " ".join([facts.get("License-Expression", ""), facts.get("License", "").partition("\n")[0], *classifiers])


def test_the_tables_of_dependencies_are_those_of_pyproject() -> None:
    tables, _, _ = DEPENDENCIES.partition("## Terms")
    direct = re.findall(r"^\| `([\w.-]+)` \| (\w+) \| [^|]+ \| [^|]+ \|$", tables, re.MULTILINE)
    assert dict(direct) == declared()


def test_every_term_that_is_not_permissive_is_named() -> None:
    _, _, named = DEPENDENCIES.partition("## Terms")
    pinned = re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    seen = 0
    for package in pinned:
        try:
            found = terms(package)
        except PackageNotFoundError:  # for another system
            continue
        seen += 1
        if NOT_PERMISSIVE.search(found):
            assert f"`{package}`" in named or (package.startswith("nvidia-") and "`nvidia-*`" in named), (package, found)
    assert seen > 200


def test_what_is_needed_to_run_has_no_copyleft() -> None:
    for package, group in declared().items():
        if group in ("base", "serve", "train", "search"):
            assert "GPL" not in terms(package), package


def test_every_package_that_is_imported_is_declared() -> None:
    providers = packages_distributions()
    through = {
        "aiohttp": "dvc",
        "botocore": "boto3",
        "kagglesdk": "kaggle",
        "werkzeug": "flask",
        "nbformat": "nbclient",
    }  # parts of these
    own = {"fieldguide", "stages", "benchmarks", "support"}
    own |= {file.stem for file in (ROOT / "benchmarks").glob("*.py")}
    names = {name.lower() for name in declared()}
    for folder in ("fieldguide", "stages", "benchmarks", "docs", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            for module in third_party(file) - own - set(sys.stdlib_module_names):
                given = {through.get(module, ""), *(name.lower().replace("_", "-") for name in providers.get(module, []))}
                assert given & names, (file, module)


def test_the_architecture_lists_every_package_in_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## The library")[2]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(PACKAGES)
