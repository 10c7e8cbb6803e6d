"""The backends available on this machine, and its hardware."""

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fieldguide.benchmark.timing import Predict
from fieldguide.core.artifacts import Hardware
from fieldguide.core.machine import cpu_model, has_vnni
from fieldguide.network.calibration import load_calibration
from fieldguide.network.checkpoint import load_checkpoint
from fieldguide.network.device import device_name
from fieldguide.onnx.classifier import OnnxClassifier, has_provider, runtime_version
from fieldguide.onnx.export import torch_probabilities

CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Backend:
    """A way to predict: with all threads, with one thread (None on an accelerator), and the size of its file."""

    predict: Predict
    one_thread: Predict | None
    n_bytes: int
    start: tuple[str, ...] = ()  # arguments of `footprint`; empty: not measured


def load_backends(
    checkpoint: Path, calibration: Path, onnx_files: Mapping[str, Path], device: torch.device, compiled: bool
) -> dict[str, Backend]:
    """The available backends by name; each loads its own copy of the network.

    onnx_files: by the name of their CPU backend; `compiled` adds torch.compile.
    """
    n_threads, n_bytes, fitted = torch.get_num_threads(), checkpoint.stat().st_size, load_calibration(calibration)

    def torch_predict(on: torch.device, compiled: bool = False) -> Predict:
        return torch_probabilities(load_checkpoint(checkpoint)[0].to(on), fitted, compiled)

    eager = torch_predict(torch.device("cpu"))
    backends = {"torch": Backend(eager, _threads(1)(eager), n_bytes, ("torch", str(checkpoint), str(calibration)))}
    if compiled:
        predict = torch_predict(torch.device("cpu"), compiled=True)
        backends["torch_compile"] = Backend(predict, _threads(1)(predict), n_bytes)
    if device.type != "cpu":
        backends[f"torch_{device.type}"] = Backend(torch_predict(device), None, n_bytes)
    for name, file in onnx_files.items():
        all_threads, one_thread = (OnnxClassifier(file, threads).probabilities for threads in (n_threads, 1))
        backends[name] = Backend(all_threads, one_thread, file.stat().st_size, ("onnx", str(file)))
        if device.type == "cuda" and has_provider(CUDA):
            on_gpu = OnnxClassifier(file, provider=CUDA).probabilities
            backends[f"{name}_cuda"] = Backend(on_gpu, None, file.stat().st_size)
    return backends


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Limits torch to this number of threads in the block or, as a decorator, in each call."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_hardware(device: torch.device) -> Hardware:
    return Hardware(
        device=device_name(device),
        cpu=cpu_model(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        int8_dot_products=has_vnni(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        onnxruntime=runtime_version(),
    )
