"""A full disk."""

import subprocess
from pathlib import Path

import pytest

from support import ROOT


def on_a_tiny_disk(folder: Path, command: list[str], kilobytes: int = 64) -> subprocess.CompletedProcess[str]:
    """Runs a command while a file system of a few kB lies at `folder`; skips where mounting is not permitted."""
    mount = 'mount -t tmpfs -o size="$1"k none "$2" || exit 77; shift 2; exec "$@"'
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", mount, "sh", str(kilobytes), str(folder), *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("a tiny disk needs the command unshare")
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip(f"a tiny disk cannot be mounted here: {done.stderr.strip()}")
    return done
