"""What make says before work begins."""

import os
import subprocess
from pathlib import Path

import pytest

from support import ROOT

NAME, EMAIL = "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"


@pytest.mark.parametrize(
    ("config", "variables", "known"),
    [
        ("", {}, False),
        ("[user]\nname = Ada\nemail = ada@example.org\n", {}, True),
        ("[user]\nname = Ada\n", {}, False),
        ("[user]\nemail = ada@example.org\n", {NAME: ""}, False),
        ("", {NAME: "Ada", EMAIL: "ada@example.org"}, True),
        ("[user]\nname = Ada\n", {EMAIL: "ada@example.org"}, True),
    ],
)
def test_setup_says_what_to_set_where_git_knows_no_name(
    tmp_path: Path, config: str, variables: dict[str, str], known: bool
) -> None:
    (tmp_path / "config").write_text(config)
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": str(tmp_path / "config"), "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["make", "--silent", "-o", ".venv/installed", "setup"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment | variables, capture_output=True, text=True, check=True)
    assert ("git config --global user.name" in ended.stderr) == (not known)
    assert ended.stderr.count("\n") == (not known)
