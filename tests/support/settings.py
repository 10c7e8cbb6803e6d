"""params.yaml with other values; tests begin with the recipe `scratch`, whose networks are quickly trained."""

import json
import re

import yaml

from fieldguide.core.params import Params, YamlLoader, check_params
from support import ROOT


def changed(key: str, value: str, text: str | None = None) -> str:
    """`text`, or else `TEXT`, with another value for a dotted key; its comment stays."""
    pattern = r"\A.*?"
    for depth, part in enumerate(key.split(".")):
        pattern += rf"^{'  ' * depth}{part}:" + (r".*?" if depth < key.count(".") else "")
    new, n_changed = re.subn(
        rf"({pattern}) *(\"\"|\[.*?\]|\S+)",
        lambda match: f"{match[1]} {value}",
        TEXT if text is None else text,
        flags=re.M | re.S,
    )
    assert n_changed == 1, key
    return new


def _from_scratch() -> str:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for section, values in yaml.safe_load((ROOT / "recipes" / "scratch.yaml").read_text(encoding="utf-8")).items():
        for key, value in values.items():
            text = changed(f"{section}.{key}", value if isinstance(value, str) else json.dumps(value), text)
    return text


TEXT = _from_scratch()  # the repository's file with the values of recipes/scratch.yaml
PARAMS: Params = check_params(yaml.load(TEXT, Loader=YamlLoader), ROOT / "params.yaml")
