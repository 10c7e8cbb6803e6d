"""Facts about the processor."""

import os
import platform


def n_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_vnni() -> bool | None:
    """Whether the processor has INT8 dot products; None if the system does not report it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return "vnni" in lines.read()
    except OSError:
        return None


def cpu_model() -> str:
    """The processor's name, or its architecture if the system does not report a name."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    except OSError:
        return platform.processor() or platform.machine()
