"""The predict command against the network alone: start-up to the first answer, and photographs a second.

    python benchmarks/predict.py --model models/model.onnx --photos data/raw/images.zip --rounds 5
    python benchmarks/predict.py --model models/model.onnx --photos data/raw/images.zip --classes 12 100 1000 5000 10000

The command's rate leaves out its start-up. Medians of interleaved rounds, lowest and highest beside them.

`--classes` measures activation maps instead: images per second of the network with a random head of that many classes, one
thread, without maps, with that of the first answer, and with those of all classes, as older files computed them every time.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.core.files import UNSEALED, seal
from fieldguide.core.formats import claims_photograph
from fieldguide.core.images import decode
from fieldguide.onnx.classifier import MAPS_NAME, METADATA_KEY, OnnxClassifier

ROOT = Path(__file__).resolve().parents[1]
BATCH = 32
CALLS = 4  # of the network in a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True, help="a zip")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--classes", type=int, nargs="+", help="numbers of classes; measures activation maps")
    args = parser.parse_args()
    with zipfile.ZipFile(args.photos) as archive:
        names = [name for name in archive.namelist() if claims_photograph(name)]
        encoded = [archive.read(name) for name in names[:BATCH]]
    if args.classes:
        compare_maps(args, encoded)
        return
    one = Path(os.environ.get("TMPDIR", "/tmp"), f"photo-{os.getpid()}.jpg")
    one.write_bytes(encoded[0])

    classifier = OnnxClassifier(args.model)
    pixels = np.stack([decode(content, classifier.image_px) for content in encoded])
    classifier.probabilities(pixels)

    def alone() -> float:
        start = time.perf_counter()
        for _ in range(max(1, len(names) // BATCH // 4)):
            classifier.probabilities(pixels)
        return max(1, len(names) // BATCH // 4) * len(pixels) / (time.perf_counter() - start)

    def command(*sources: Path) -> float:
        """Seconds."""
        start = time.perf_counter()
        arguments = [sys.executable, "-m", "fieldguide", "predict", *map(str, sources), "--model", str(args.model)]
        arguments += ["--format", "csv"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return time.perf_counter() - start

    rounds = []
    for _ in range(args.rounds):
        first = command(one)
        rounds.append((first, alone(), len(names) / (command(args.photos) - first)))
    one.unlink()
    first, network, whole = np.array(rounds).T
    for label, values, unit in (
        ("start-up to the first answer", first, "s"),
        (f"network alone, batch {BATCH}", network, "images/s"),
        (f"predict, {len(names)} photographs", whole, "images/s"),
        ("predict over network alone", whole / network, ""),
    ):
        print(f"{label:32s} {np.median(values):8.2f} {unit:8s} ({values.min():.2f} to {values.max():.2f})")


def compare_maps(args: argparse.Namespace, encoded: list[bytes]) -> None:
    pixels = np.stack([decode(content, OnnxClassifier(args.model).image_px) for content in encoded])
    print(f"images/s at batch {len(pixels)}, one thread, {args.rounds} rounds of {CALLS} calls; changes are in time per image")
    for n_classes in args.classes:
        on_request, every_time = (
            OnnxClassifier(with_classes(args.model, n_classes, every_map), n_threads=1) for every_map in (False, True)
        )
        calls: dict[str, Callable[[], object]] = {
            "without a map": partial(on_request.probabilities, pixels),
            "map of the first answer": partial(on_request.predict_pixels, pixels, 5, True),
            "without a map, ranked": partial(on_request.predict_pixels, pixels, 5),
            "maps of all classes": partial(every_time.probabilities, pixels),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(args.rounds):
            for name, call in calls.items():
                call()
                start = time.process_time()  # of the CPU: others may use the machine
                for _ in range(CALLS):
                    call()
                seconds[name].append((time.process_time() - start) / CALLS)
        base = np.median(seconds["without a map"])
        for name, taken in seconds.items():
            rates, change = len(pixels) / np.array(taken), np.median(taken) / base - 1
            spread = f"({rates.min():.1f} to {rates.max():.1f})"
            print(f"{n_classes:6d} classes  {name:24s} {np.median(rates):7.1f} {spread} {change:+6.1%}")


def with_classes(source: Path, n_classes: int, every_map: bool) -> bytes:
    """The file with a random head of other classes and, with `every_map`, with the maps of all classes, as in older files."""
    model = onnx.load(source)
    graph = model.graph
    head = next(node for node in graph.node if node.op_type == "Gemm" and node.input[0] == "embedding")
    made_by = {output: node for node in graph.node for output in node.output}
    feature_map = made_by[made_by[made_by["activation"].input[0]].input[1]].input[0]
    old = {one.name: one for one in graph.initializer}
    weight = numpy_helper.to_array(old[head.input[1]])
    random = np.random.default_rng(0).normal(0, weight.std(), (n_classes, weight.shape[1])).astype(np.float32)
    new = {head.input[1]: random, head.input[2]: np.zeros(n_classes, np.float32)}
    if every_map:
        asked = {MAPS_NAME}
        for node in list(graph.node):  # in the order of computation
            if asked & set(node.input):
                asked |= set(node.output)
                graph.node.remove(node)
        graph.node.append(onnx.helper.make_node("Conv", [feature_map, "kernels"], ["activation"]))
        new["kernels"] = random[:, :, None, None]
        graph.input.pop()
        graph.output[-1].type.tensor_type.shape.dim[1].dim_value = n_classes
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = n_classes
    for name in {*new, *({MAPS_NAME} if every_map else ())} & set(old):
        graph.initializer.remove(old[name])
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in new.items())
    del graph.value_info[:]
    properties = {one.key: one.value for one in model.metadata_props}
    metadata = json.loads(properties[METADATA_KEY]) | {"class_names": list(map(str, range(n_classes))), "seal": UNSEALED}
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    return seal(model.SerializeToString())


if __name__ == "__main__":
    main()
