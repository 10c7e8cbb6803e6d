"""What a frozen part of the backbone saves: seconds of an epoch by `train.freeze`, and of head epochs by `train.head_augment`.

    python benchmarks/freezing.py [--images 480] [--rounds 3] [--freeze 0 0.25 0.5]

Needs data/manifest.csv and data/raw, and a params.yaml with a pretrained network (`fieldguide recipe transfer`, `dvc repro
split_check`). The ways take turns on the same images, so that a machine that slows down slows all of them. Printed are medians
over the rounds and the quotients of the same round.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.training import training_setup
from fieldguide.core.manifest import classes_of, read_manifest, rows_of
from fieldguide.core.params import Params, read_params
from fieldguide.core.paths import MANIFEST
from fieldguide.network.device import device_name, pick_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--freeze", type=float, nargs="+", default=[0.0, 0.25, 0.5])
    arguments = parser.parse_args()
    params, manifest = read_params(), read_manifest(MANIFEST)
    rows = rows_of(manifest, "train").sample(frac=1, random_state=0)[: arguments.images].sort_index().reset_index(drop=True)
    device, classes = pick_device(params.runtime.device), classes_of(manifest)

    def of(**changes: object) -> Params:
        return params.model_copy(update={"train": params.train.model_copy(update=changes)})

    def epochs(changed: Params, numbers: range) -> Callable[[], None]:
        def run() -> None:
            training = training_setup(changed, rows, classes, device)
            start = time.perf_counter()
            for number in numbers:
                training.epoch(number)
            seconds.append(time.perf_counter() - start)

        return run

    seconds: list[float] = []
    head = params.train.head_epochs
    whole = {f"freeze {share:g}": epochs(of(freeze=share), range(head, head + 1)) for share in arguments.freeze}
    heads = {
        f"{head} head epochs, head_augment {str(augment).lower()}": epochs(of(head_augment=augment), range(head))
        for augment in (True, False)
    }
    print(
        f"{device_name(device)}, torch {torch.__version__}; {params.model.name}, {len(rows)} images, {arguments.rounds} rounds"
    )
    for ways in (whole, heads):
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, run in ways.items():
                run()
                times[name].append(seconds.pop())
        first = next(iter(times.values()))
        for name, taken in times.items():
            quotients = [one / other for one, other in zip(first, taken, strict=True)]
            middle, seconds_text = statistics.median(quotients), f"{statistics.median(taken):7.1f} s"
            print(f"{name:34s} {seconds_text}, {middle:.2f} times as fast ({min(quotients):.2f} to {max(quotients):.2f})")


if __name__ == "__main__":
    main()
