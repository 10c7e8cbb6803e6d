"""The version of this fieldguide, with the commit where that is known."""

import importlib.metadata
import json
import subprocess
from pathlib import Path

__version__ = "0.2.0"
ROOT = Path(__file__).resolve().parents[2]


def version_text() -> str:
    """`0.2.0 (commit 1a2b3c4)`: of the checkout, with "-dirty" if it is changed, or of what pip installed from a repository."""
    commit = _of_checkout() or _of_installation()
    return f"{__version__} (commit {commit})" if commit else __version__


def _of_checkout() -> str:
    if not (ROOT / ".git").exists():  # a repository around an installation is another project's
        return ""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a folder of another owner
        return ""


def _of_installation() -> str:
    """The commit in direct_url.json, which pip writes (PEP 610)."""
    try:
        recorded = importlib.metadata.distribution("fieldguide").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return ""
    return str(json.loads(recorded or "{}").get("vcs_info", {}).get("commit_id", ""))[:7]
