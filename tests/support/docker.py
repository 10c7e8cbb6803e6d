"""Dockerfiles as lists of instructions, and their steps carried out in a folder instead of an image."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from support import ROOT

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


def carry_out(stage: list[Instruction], root: Path, places: tuple[str, ...], variables: Mapping[str, str]) -> None:
    """WORKDIR, COPY and RUN of a stage with this Python, each of `places` (such as /opt) below `root`.

    What it installs by apt-get must be on this machine.
    """
    subprocess.run([sys.executable, "-m", "venv", root / "usr"], check=True)
    environment = {**variables, "PATH": f"{root / 'usr' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    folder = root
    for word, rest in stage:
        for place in places:
            rest = re.sub(rf"(?<![\w/.]){place}\b", str(root / place[1:]), rest)
        if word == "WORKDIR":
            folder = Path(rest)
            folder.mkdir(exist_ok=True)
        elif word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, folder / (source if target == "./" else target))
        elif word == "RUN" and not rest.startswith("apt-get"):
            subprocess.run(["sh", "-c", rest], cwd=folder, env=environment, check=True)
