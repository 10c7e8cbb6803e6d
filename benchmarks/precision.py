"""Images trained per second in bf16 and fp32, network by network, and what `train.precision: auto` chooses.

    python benchmarks/precision.py [--px 128] [--batch 16] [--seconds 3] [--rounds 3] [--networks fieldnet resnet18 ...]

Both precisions take turns on the same random images, in their own copies of the network, so that a machine that slows down
slows both. Without bf16 instructions bf16 is emulated.
"""

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.network.device import autocast, computes_bf16, device_name, pick_device, pick_dtype
from fieldguide.network.models import Classifier, build, depthwise_share

NETWORKS = [
    "fieldnet",
    "cnn",
    "resnet18",
    "resnet50",
    "vgg16",
    "densenet121",
    "regnet_x_400mf",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "convnext_tiny",
    "shufflenet_v2_x1_0",
    "timm/convnext_atto",
    "timm/mobilevit_s",
    "timm/tf_efficientnet_lite0",
    "timm/vit_tiny_patch16_224",
]


def seconds_per_step(model: Classifier, dtype: torch.dtype, pixels: torch.Tensor, seconds: float) -> float:
    target = torch.arange(len(pixels), device=pixels.device) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        with autocast(pixels.device, dtype):
            logits = model(pixels)
        F.cross_entropy(logits.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        if pixels.device.type == "cuda":
            torch.cuda.synchronize(pixels.device)

    step()  # chooses kernels
    start, n_steps = time.perf_counter(), 0
    while n_steps < 2 or time.perf_counter() - start < seconds:
        step()
        n_steps += 1
    return (time.perf_counter() - start) / n_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    arguments = parser.parse_args()
    device = pick_device("auto")
    print(f"{device_name(device)}, bf16 instructions: {computes_bf16(device)}, torch {torch.__version__}")
    print(f"{arguments.px} px, batch {arguments.batch}, {arguments.rounds} rounds; images/s, and bf16 / fp32 of the same round")
    for name in arguments.networks:
        px = 224 if "patch16_224" in name else arguments.px
        torch.manual_seed(1)
        model = build(name, 10, px).to(device, memory_format=torch.channels_last).train()
        pixels = torch.rand(arguments.batch, 3, px, px, device=device).to(memory_format=torch.channels_last)
        ways = {torch.bfloat16: model, torch.float32: copy.deepcopy(model)}
        speeds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in ways}
        for number in range(arguments.rounds):
            for dtype in list(ways)[:: 1 if number % 2 else -1]:
                speeds[dtype].append(len(pixels) / seconds_per_step(ways[dtype], dtype, pixels, arguments.seconds))
        ratios = [one / other for one, other in zip(speeds[torch.bfloat16], speeds[torch.float32], strict=True)]
        chosen = pick_dtype("auto", device, depthwise_share(model, px))
        ratio = statistics.median(ratios)
        loss = max(0.0, 1 - (ratio if chosen == torch.bfloat16 else 1 / ratio))
        speed = "  ".join(f"{str(dtype)[6:]} {statistics.median(values):7.1f}" for dtype, values in speeds.items())
        choice = f"auto: {str(chosen)[6:]}, {loss:.0%} slower than the better"
        print(f"{name:28s} {speed}  {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})  {choice}", flush=True)


if __name__ == "__main__":
    main()
