"""Dockerfiles as lists of instructions."""

import json
import re
from pathlib import Path

Instruction = tuple[str, str]  # `RUN`, and the rest of its line


def instructions(file: Path) -> list[Instruction]:
    """The instructions in order, continued lines joined, without comments."""
    text = re.sub(r"^#.*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def stages(file: Path) -> list[list[Instruction]]:
    """The instructions of each stage, which a FROM begins."""
    found: list[list[Instruction]] = []
    for instruction in instructions(file):
        if instruction[0] == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def words(stage: list[Instruction], name: str) -> list[str]:
    """The words of the only instruction of this name, which is in exec form."""
    (text,) = [rest for word, rest in stage if word == name]
    return json.loads(text[text.index("[") :])
