"""This checkout's params.yaml with other values."""

import re

from support import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def changed(key: str, value: str, text: str = TEXT) -> str:
    """The repository's file with another value for a dotted key, as text; its comment stays."""
    pattern = r"\A.*?"
    for depth, part in enumerate(key.split(".")):
        pattern += rf"^{'  ' * depth}{part}:" + (r".*?" if depth < key.count(".") else "")
    new, n_changed = re.subn(rf"({pattern}) *(\"\"|\[.*?\]|\S+)", lambda match: f"{match[1]} {value}", text, flags=re.M | re.S)
    assert n_changed == 1, key
    return new
