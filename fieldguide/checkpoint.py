"""A trained network as one safetensors file: weights, and in its header what is needed to build and use it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fieldguide.errors import UserError
from fieldguide.files import write_bytes
from fieldguide.manifest import Classes
from fieldguide.models import NETWORKS, Classifier, build

HEADER_KEY = "fieldguide"  # one key: safetensors writes several in an order that differs from run to run


@dataclass(frozen=True)
class Checkpoint:
    """What a network is, besides its weights."""

    model: str
    image_px: int
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    epoch: int
    manifest_sha256: str

    @property
    def classes(self) -> Classes:
        return Classes(self.class_names, self.labels)


def save_checkpoint(target: Path, model: Classifier, facts: Checkpoint) -> None:
    """Writes weights and facts, atomically; equal ones give equal bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_bytes(target, save(tensors, metadata={HEADER_KEY: json.dumps(asdict(facts), ensure_ascii=False)}))


def load_checkpoint(source: Path) -> tuple[Classifier, Checkpoint]:
    """The network on the CPU, in evaluation mode; raises `UserError` for a file that `save_checkpoint` did not write."""
    try:
        with safe_open(source, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER_KEY])
            facts = Checkpoint(**header | {key: tuple(header[key]) for key in ("class_names", "labels")})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open does not iterate)
    except FileNotFoundError as error:
        raise UserError(f"{source} does not exist; make it with: dvc repro train") from error
    except OSError as error:
        raise UserError(f"{source}: {error.strerror or error}; make it with: dvc repro -f train") from error
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: not a checkpoint of fieldguide ({error}); make it with: dvc repro -f train") from error
    if facts.model not in NETWORKS:
        raise UserError(f"{source}: network {facts.model!r} is unknown; known are {', '.join(NETWORKS)}")
    model = build(facts.model, len(facts.class_names))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{source}: weights do not fit {facts.model} ({error}); make it with: dvc repro -f train") from error
    return model.eval().to(memory_format=torch.channels_last), facts
