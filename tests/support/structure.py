"""The packages of the library and who imports what."""

import ast
from pathlib import Path

PACKAGES = {  # each with the packages that it may import, besides core and itself
    "core": set(),
    "sources": set(),
    "checks": {"sources"},
    "labels": {"checks"},
    "network": set(),
    "tracking": set(),
    "onnx": {"network"},
    "training": {"network", "tracking"},
    "evaluation": {"network", "onnx"},
    "benchmark": {"network", "onnx"},
    "report": {"evaluation", "onnx"},
    "web": {"onnx", "tracking"},
    "review": {"sources", "web"},
    "commands": {
        *("sources", "checks", "labels", "network", "tracking", "onnx", "training", "evaluation", "benchmark", "report"),
        *("web", "review"),
    },
}


def third_party(source: Path) -> set[str]:
    """Top-level names of the packages that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names
