"""Facts about the processor."""

import os
import platform
import re
from pathlib import Path


def n_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
