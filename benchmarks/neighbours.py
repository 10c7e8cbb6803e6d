"""Images trained per second beside busy neighbours and alone, by the way in which OpenMP's threads wait for each other.

    python benchmarks/neighbours.py [--neighbours 0 2] [--network timm/tf_efficientnet_lite0] [--px 96] [--rounds 3]

A neighbour is a process that counts without end. Each way is a process of its own, which trains on random images; the ways
take turns, so that a machine that slows down slows all. A user may export `passive` and `one thread` before a training.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WAYS = {
    "default": {"OMP_WAIT_POLICY": ""},  # of OpenMP: threads spin for a while, then sleep
    "active": {"OMP_WAIT_POLICY": "ACTIVE"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    **{f"spin {n}": {"GOMP_SPINCOUNT": str(n)} for n in (1_000, 10_000, 30_000, 100_000)},  # turns, then sleep
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def train(network: str, image_px: int, batch: int, seconds: float) -> float:
    """Images trained per second; prints nothing."""
    sys.path.insert(0, str(ROOT))
    import torch
    import torch.nn.functional as F

    from fieldguide.network.device import autocast, pick_dtype
    from fieldguide.network.models import build, depthwise_share

    torch.manual_seed(1)
    device = torch.device("cpu")
    model = build(network, 50, image_px).to(memory_format=torch.channels_last).train()
    dtype = pick_dtype("auto", device, depthwise_share(model, image_px))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pixels = torch.rand(batch, 3, image_px, image_px).to(memory_format=torch.channels_last)
    target = torch.arange(batch) % 50
    start, n_steps = 0.0, 0
    while not start or time.perf_counter() - start < seconds:
        with autocast(device, dtype):
            logits = model(pixels)
        F.cross_entropy(logits.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        n_steps += 1
        if n_steps == 2 and not start:  # the first steps choose kernels
            start, n_steps = time.perf_counter(), 0
    return n_steps * batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--network", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--px", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(train(arguments.network, arguments.px, arguments.batch, arguments.seconds)))
        return
    for n in arguments.neighbours:
        neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
        try:
            speeds: dict[str, list[float]] = {name: [] for name in arguments.ways}
            for number in range(arguments.rounds):
                for name in arguments.ways[:: 1 if number % 2 else -1]:
                    own = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
                    child = [sys.executable, __file__, "--child", *sys.argv[1:]]
                    done = subprocess.run(child, env=own | WAYS[name], capture_output=True, text=True, check=True)
                    speeds[name].append(json.loads(done.stdout))
        finally:
            for neighbour in neighbours:
                neighbour.kill()
        for name, values in speeds.items():
            ratios = [ours / theirs for ours, theirs in zip(values, speeds[arguments.ways[0]], strict=True)]
            speed = f"{statistics.median(values):7.1f} images/s ({min(values):.1f} to {max(values):.1f})"
            ratio = f"{statistics.median(ratios):.2f} times {arguments.ways[0]} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{n} neighbours, {name:10s}  {speed}; {ratio}", flush=True)


if __name__ == "__main__":
    main()
