"""Settings of glibc's malloc."""

import platform
import subprocess
import sys

import pytest

from support import ROOT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's way")


def test_memory_that_is_free_goes_back_to_the_system() -> None:
    code = (
        "import re\nfrom pathlib import Path\nfrom fieldguide.core import memory\n"
        "def resident(): return int(re.search(r'VmRSS:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "memory.share()\nparts = [bytearray(50_000) for _ in range(2000)]\nkept = parts[-1]\ndel parts\n"
        "before = resident()\nmemory.give_back()\nprint(before - resident())"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(printed) > 80_000  # of the 97,656 KiB that were in use below what still is


@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.35"), reason="older ones refuse the setting")
@pytest.mark.parametrize("megabytes", [33, 200, 900])
def test_memory_that_is_freed_is_kept_for_the_next_block(megabytes: int) -> None:
    code = (
        "import resource, sys\nimport numpy as np\nfrom fieldguide.core import memory\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def fill(): np.ones(int(sys.argv[1]) * 1_000_000, np.uint8)\n"
        "if sys.argv[2] == 'keep': memory.keep()\n"
        "fill()\nbefore = faults()\nfor _ in range(3): fill()\nprint(faults() - before)"
    )
    pages = {}
    for way in ("keep", "default"):
        command = [sys.executable, "-c", code, str(megabytes), way]
        pages[way] = int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert pages["keep"] * 10 < pages["default"]
