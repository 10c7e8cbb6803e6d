"""Facts about the processor."""

import math
import os
import platform
import re
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # where a container sees its own


def n_cores() -> int:
    """Number of cores that this process may use, also within a container's CPU quota, rounded up."""
    n_present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(n_present, math.ceil(_cpu_quota()))


def _cpu_quota() -> float:
    """CPU time per time that a container may use, from the files of cgroup version 2 or 1; 1e9 if there is no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # not Linux; no limit: "max", or -1
            quota, period = map(int, " ".join((CGROUP / name).read_text() for name in names).split())
            if quota > 0:
                return quota / period
    return 1e9


def has_vnni() -> bool | None:
    """Whether the processor has INT8 dot products; None if the system does not report it."""
    facts = _cpu_facts()
    return "vnni" in facts if facts else None


def cpu_model() -> str:
    """The processor's name, or its architecture if the system does not report a name."""
    name = re.search(r"^model name\s*: (.+)", _cpu_facts(), re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def _cpu_facts() -> str:
    file = Path("/proc/cpuinfo")  # Linux only
    return file.read_text() if file.exists() else ""
