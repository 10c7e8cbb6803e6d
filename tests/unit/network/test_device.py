"""Device and precision: chosen by what the machine has, or refused."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fieldguide.core.errors import UserError
from fieldguide.network.device import autocast, device_name, pick_device, pick_dtype, seed_device
from fieldguide.network.models import build, depthwise_share
from support import ROOT

CPU = torch.device("cpu")
CPUINFO = Path("/proc/cpuinfo")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """`machine(cuda=True, mps=False)`: what torch says about the accelerators."""

    def have(cuda: bool, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return have


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_picks_the_fastest_device_present(machine, cuda: bool, mps: bool, expected: str) -> None:
    machine(cuda, mps)
    assert pick_device("auto").type == expected


@pytest.mark.parametrize("choice", ["cpu", "cuda", "mps"])
def test_a_named_device_is_taken_when_present(machine, choice: str) -> None:
    machine(cuda=True, mps=True)
    assert pick_device(choice).type == choice


@pytest.mark.parametrize("choice", ["cuda", "mps"])
def test_a_missing_device_is_refused_with_what_to_do(machine, choice: str) -> None:
    machine(cuda=False, mps=False)
    expected = f"params.yaml: runtime.device is {choice}, which this machine lacks; set it to auto or cpu"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        pick_device(choice)


@pytest.mark.parametrize(("choice", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_named_precision_is_taken_on_every_device(choice: str, dtype: torch.dtype, device: str) -> None:
    assert pick_dtype(choice, torch.device(device)) == dtype


@pytest.mark.skipif(not CPUINFO.exists(), reason="no /proc/cpuinfo to compare with")
def test_auto_precision_on_the_cpu_is_what_the_kernel_says_it_computes() -> None:
    flags = set(CPUINFO.read_text().split("flags", 1)[-1].split("\n", 1)[0].split())
    expected = torch.bfloat16 if flags & {"avx512_bf16", "amx_bf16"} else torch.float32
    assert pick_dtype("auto", CPU) == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, torch.float32),
        ({"architecture": "aarch64"}, torch.float32),
    ],
)
def test_auto_precision_on_the_cpu_follows_its_capabilities(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert pick_dtype("auto", CPU) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm/test_resnet", torch.bfloat16),
        ("efficientnet_v2_s", torch.bfloat16),
        ("timm/convnext_atto", torch.bfloat16),
        ("timm/mobilevit_s", torch.bfloat16),
        ("mobilenet_v3_small", torch.float32),
        ("shufflenet_v2_x1_0", torch.float32),
        ("timm/tf_efficientnet_lite0", torch.float32),
    ],
)
def test_auto_precision_on_the_cpu_is_fp32_for_mostly_depthwise_convolutions(
    monkeypatch: pytest.MonkeyPatch, name: str, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    with torch.device("meta"):
        depthwise = depthwise_share(build(name, 3, 128), 128)
    assert pick_dtype("auto", CPU, depthwise) == expected
    assert pick_dtype("bf16", CPU, depthwise) == pick_dtype("auto", torch.device("cuda"), depthwise) == torch.bfloat16


def test_auto_precision_is_fp32_where_torch_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_on_cuda_asks_for_hardware_not_emulation(
    monkeypatch: pytest.MonkeyPatch, supported: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported)
    assert pick_dtype("auto", torch.device("cuda")) == expected


def test_products_are_computed_in_the_dtype_asked_for() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with autocast(CPU, torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with autocast(CPU, torch.float32):
        assert layer(x).dtype == torch.float32


def test_the_cpu_is_named_with_its_architecture_and_threads() -> None:
    assert re.fullmatch(rf"cpu \w+, {torch.get_num_threads()} threads", device_name(CPU))


@pytest.mark.slow
def test_a_gpu_is_asked_for_repeatable_kernels_in_true_float32_and_a_cpu_for_nothing() -> None:
    code = (
        "import os, sys, torch; from fieldguide.network.device import set_up; set_up(torch.device(sys.argv[1]));"
        "print(torch.backends.cudnn.deterministic, not torch.backends.cudnn.allow_tf32,"
        " torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),"
        " 'CUBLAS_WORKSPACE_CONFIG' in os.environ)"
    )
    for device, expected in (("cuda", "True"), ("cpu", "False")):
        command = [sys.executable, "-c", code, device]
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        assert output == [expected] * 5


def test_a_seed_gives_the_numbers_that_it_gives_in_torch() -> None:
    torch.manual_seed(12345678901)
    expected = torch.rand(3)
    seed_device(CPU, 12345678901)
    assert torch.rand(3).equal(expected)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_devices_own_generator_is_seeded_too(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    seeded = []
    monkeypatch.setattr(getattr(torch, kind), "manual_seed", seeded.append)
    seed_device(torch.device(kind), 7)
    assert seeded == [7]
