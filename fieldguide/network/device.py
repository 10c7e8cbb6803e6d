"""Selection of device and precision."""

import os
import platform
from contextlib import AbstractContextManager

import torch

from fieldguide.core import memory
from fieldguide.core.errors import UserError
from fieldguide.core.machine import n_cores

MOSTLY_DEPTHWISE = 0.0027  # between MobileViT-S, faster in bf16, and ShuffleNetV2, slower: benchmarks/precision.py


def pick_device(choice: str) -> torch.device:
    """The device that `runtime.device` names; raises `UserError` if this machine does not have it."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto":
        choice = next(name for name, present in available.items() if present)
    if not available[choice]:
        raise UserError(f"params.yaml: runtime.device is {choice}, which this machine lacks; set it to auto or cpu")
    return torch.device(choice)


def set_up(device: torch.device) -> None:
    """Makes a GPU deterministic, and disables TF32 in convolutions; keeps freed memory of the CPU (`memory.keep`).

    A CPU is deterministic by default. Torch warns about an operation without a deterministic implementation. Its threads are at
    most as many as the cores of `n_cores`, which respects a container's quota.
    """
    torch.set_num_threads(min(torch.get_num_threads(), n_cores()))
    memory.keep()
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # takes time


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds the generators of the CPU and of this device; faster than `torch.manual_seed`, which seeds every device type."""
    torch.default_generator.manual_seed(seed)
    if device.type in ("cuda", "mps"):
        torch.get_device_module(device).manual_seed(seed)


def device_name(device: torch.device) -> str:
    """A readable name: `NVIDIA H200`, `cpu x86_64, 2 threads`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}, {torch.get_num_threads()} threads"


def pick_dtype(choice: str, device: torch.device, depthwise_share: float = 0.0) -> torch.dtype:
    """The dtype of matrix products for `train.precision`: auto is bf16 if the hardware supports it and gains by it.

    depthwise_share: of the network (`models.depthwise_share`). On a CPU depthwise convolutions are slower in bf16 than in fp32.
    """
    if choice == "auto":
        gains = device.type != "cpu" or depthwise_share < MOSTLY_DEPTHWISE
        choice = "bf16" if gains and computes_bf16(device) else "fp32"
    return torch.bfloat16 if choice == "bf16" else torch.float32


def computes_bf16(device: torch.device) -> bool:
    """Whether the hardware has bf16 instructions; a CPU without them emulates bf16, many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Matrix products in `dtype`; disabled for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
