"""What a first answer costs, measured in a process of its own."""

from pathlib import Path

import numpy as np
import pytest

from fieldguide.benchmark.footprint import footprint, peak_bytes
from fieldguide.core.errors import UserError
from support.mean_colour import mean_colour_network, save


def test_time_and_memory_are_those_of_a_fresh_process(tmp_path: Path) -> None:
    held = np.ones(300_000_000, np.uint8)  # of this process, not of that
    found = footprint("onnx", str(save(tmp_path, mean_colour_network())))
    assert set(found) == {"import_s", "load_s", "first_answer_s", "peak_bytes"}
    assert found["import_s"] + found["load_s"] < found["first_answer_s"]
    assert 10_000_000 < found["peak_bytes"] < 300_000_000
    assert peak_bytes() > held.nbytes


def test_a_process_that_fails_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the process that measures memory failed \(error: \S+none\.onnx: No such file"):
        footprint("onnx", str(tmp_path / "none.onnx"))
