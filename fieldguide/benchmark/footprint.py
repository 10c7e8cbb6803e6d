"""Start-up time and memory of a backend, measured in a separate process.

`footprint` starts the process: python -m fieldguide.benchmark.footprint onnx MODEL | torch CHECKPOINT CALIBRATION
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fieldguide.core.errors import UserError, run_command

PROJECT = Path(__file__).resolve().parents[2]
BATCH = 32


def footprint(*arguments: str) -> dict[str, Any]:
    """Seconds to import, to load the file and to the first prediction (total), and peak memory in bytes after a batch of 32.

    Raises `UserError` if the process fails.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "fieldguide.benchmark.footprint", *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        raise UserError(f"{' '.join(arguments)}: the process that measures memory failed ({reason}); free memory and try again")
    return json.loads(ended.stdout)


def main() -> None:
    predict: Callable[[np.ndarray], np.ndarray]
    kind, *files = sys.argv[1:]
    began = time.perf_counter()
    if kind == "onnx":
        from fieldguide.onnx.classifier import OnnxClassifier

        imported = time.perf_counter()
        classifier = OnnxClassifier(Path(files[0]))
        image_px, predict = classifier.image_px, classifier.probabilities
    else:
        from fieldguide.network.calibration import load_calibration
        from fieldguide.network.checkpoint import load_checkpoint
        from fieldguide.onnx.export import torch_probabilities

        imported = time.perf_counter()
        model, facts = load_checkpoint(Path(files[0]))
        image_px, predict = facts.image_px, torch_probabilities(model, load_calibration(Path(files[1])))
    loaded = time.perf_counter()
    predict(np.zeros((1, image_px, image_px, 3), np.uint8))
    answered = time.perf_counter()
    predict(np.zeros((BATCH, image_px, image_px, 3), np.uint8))
    seconds = {"import_s": imported - began, "load_s": loaded - imported, "first_answer_s": answered - began}
    print(json.dumps(seconds | {"peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Peak memory of this process, from /proc if possible, because the rusage of a child includes its parent's memory."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    run_command(main)
