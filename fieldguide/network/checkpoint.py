"""A trained network as one safetensors file, with its name, input size and classes in the header."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fieldguide.core.errors import UserError
from fieldguide.core.files import UNSEALED, is_damaged, is_intact, seal, write_bytes
from fieldguide.core.manifest import Classes
from fieldguide.network.models import Classifier, build, check_name

HEADER_KEY = "fieldguide"  # a single key: safetensors writes several in random order
HEADER_BEGIN = 64  # bytes of a safetensors file that contain the first key of its header


@dataclass(frozen=True)
class Checkpoint:
    """The header of a checkpoint: everything but the weights."""

    model: str
    image_px: int
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    epoch: int
    manifest_sha256: str

    @property
    def classes(self) -> Classes:
        return Classes(self.class_names, self.labels)


def save_sealed(target: Path, tensors: Mapping[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Writes tensors and facts (JSON) with a checksum, atomically; equal input gives equal bytes."""
    copies = {  # because safetensors refuses tensors that share memory
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    header = json.dumps(facts | {"seal": UNSEALED}, ensure_ascii=False)
    write_bytes(target, seal(save(copies, metadata={HEADER_KEY: header})))


@contextmanager
def sealed_content(source: Path, kind: str, stage: str) -> Iterator[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Facts and tensors of a file that `save_sealed` wrote; raises `UserError` for any other file.

    Errors in the block become a `UserError` too: the file is not of this `kind`, which `stage` writes.
    """
    remedy = f"create it with: dvc repro -f {stage}"
    try:
        content = source.read_bytes()
        if is_damaged(content):
            raise UserError(f"{source}: damaged, its checksum does not match; {remedy}")
        with safe_open(source, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[HEADER_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open does not iterate)
        facts.pop("seal", None)
        yield facts, tensors
    except FileNotFoundError as error:
        raise UserError(f"{source} does not exist; create it with: dvc repro {stage}") from error
    except OSError as error:
        raise UserError(f"{source}: {error.strerror or error}; {remedy}") from error
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: not a {kind} of fieldguide ({error}); {remedy}") from error
    if not is_intact(content):
        raise UserError(f"{source}: not a {kind} of fieldguide (it has no checksum); {remedy}")


def save_checkpoint(target: Path, model: Classifier, facts: Checkpoint) -> None:
    save_sealed(target, model.state_dict(), asdict(facts))


def load_checkpoint(source: Path) -> tuple[Classifier, Checkpoint]:
    """The network on the CPU, in evaluation mode; raises `UserError` for a file that `save_checkpoint` did not write."""
    with sealed_content(source, "checkpoint", "train") as (header, tensors):
        facts = Checkpoint(**header | {key: tuple(header[key]) for key in ("class_names", "labels")})
    check_name(facts.model, where=f"{source}: network")
    model = build(facts.model, len(facts.class_names), facts.image_px)
    try:
        model.load_state_dict(with_tensors(model.state_dict(), tensors))
    except RuntimeError as error:
        raise UserError(f"{source}: weights do not fit {facts.model} ({error}); create it with: dvc repro -f train") from error
    return model.eval().to(memory_format=torch.channels_last), facts


def with_tensors(state: dict[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict with other tensors and its own versions of modules, by which torch converts old names."""
    state.clear()
    state.update(tensors)
    return state
