"""Images per second with freed memory given back to the system, as glibc does by default, and kept (core/memory.py).

    python benchmarks/kept_memory.py [--network timm/tf_efficientnet_lite0] [--px 160] [--batch 32] [--seconds 4] [--rounds 5]

Processes of both kinds take turns, each measuring forward passes and training steps on random images in fp32; ratios are of the
same round.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.benchmark.footprint import peak_bytes
from fieldguide.core import memory
from fieldguide.core.machine import cpu_model
from fieldguide.network.models import build

KINDS = ("forward", "training")


def per_second(step: Callable[[], object], seconds: float) -> float:
    step()  # chooses kernels
    start, n_steps = time.perf_counter(), 0
    while n_steps < 2 or time.perf_counter() - start < seconds:
        step()
        n_steps += 1
    return n_steps / (time.perf_counter() - start)


def measure(network: str, px: int, batch: int, seconds: float) -> dict[str, float]:
    """Images per second of both kinds, and the process's peak in MiB."""
    torch.manual_seed(1)
    model = build(network, 10, px).to(memory_format=torch.channels_last)
    pixels = torch.rand(batch, 3, px, px).to(memory_format=torch.channels_last)
    target = torch.arange(batch) % 10

    def forward() -> None:
        with torch.inference_mode():
            model.eval()(pixels)

    def train() -> None:
        F.cross_entropy(model.train()(pixels), target).backward()
        model.zero_grad()

    speeds = {kind: batch * per_second(step, seconds) for kind, step in zip(KINDS, (forward, train), strict=True)}
    return speeds | {"peak": peak_bytes() / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--px", type=int, default=160)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", choices=("kept", "returned"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        if arguments.way == "kept":
            memory.keep()
        print(json.dumps(measure(arguments.network, arguments.px, arguments.batch, arguments.seconds)))
        return
    found: dict[str, list[dict[str, float]]] = {"returned": [], "kept": []}
    for number in range(arguments.rounds):
        for way in list(found)[:: 1 if number % 2 else -1]:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            found[way].append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
    print(f"{arguments.network}, {arguments.px} px, batch {arguments.batch}, {arguments.rounds} rounds, {cpu_model()}")
    for kind in KINDS:
        ratios = [kept[kind] / returned[kind] for kept, returned in zip(found["kept"], found["returned"], strict=True)]
        speeds = "  ".join(f"{way} {statistics.median(one[kind] for one in ones):6.1f} images/s" for way, ones in found.items())
        print(f"{kind:9s} {speeds}  {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print("peak      " + "  ".join(f"{way} {max(one['peak'] for one in ones):6.0f} MiB" for way, ones in found.items()))


if __name__ == "__main__":
    main()
