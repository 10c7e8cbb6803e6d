"""What a network's answers are worth: the temperature of its probabilities, and the scores below which it says "I don't know".

`stages/evaluate.py` fits it (class means on train, all else on valid) and writes models/calibration.safetensors; the
export puts it into the ONNX file.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from fieldguide.checkpoint import HEADER_KEY
from fieldguide.errors import UserError
from fieldguide.files import UNSEALED, is_whole, sealed, write_bytes

FACTS = ("tta", "temperature", "unsure_below", "score", "unknown_below")
Tensors = Mapping[str, torch.Tensor]
REMEDY = "make it with: dvc repro -f evaluate"


@dataclass(frozen=True)
class Calibration:
    """How logits and embeddings become probabilities and a verdict.

    tta: none, or mirror: logits and embedding are means over the image and its mirror image.
    temperature: logits are divided by it before softmax (Guo et al. 2017, arXiv:1706.04599).
    unsure_below: the top probability under which an answer is unsure; above 1 where none is sure.
    score: the key of `SCORES` by which an image is known or not.
    unknown_below: the known score under which an image shows none of the classes.
    tensors: what the score needs, float32 by name; may be empty.
    """

    tta: str
    temperature: float
    unsure_below: float
    score: str
    unknown_below: float
    tensors: dict[str, torch.Tensor]


def probability(logits: torch.Tensor, embedding: torch.Tensor, temperature: float, tensors: Tensors) -> torch.Tensor:
    """The largest probability (Hendrycks and Gimpel 2017, arXiv:1610.02136)."""
    return (logits / temperature).softmax(dim=1).amax(dim=1)


def energy(logits: torch.Tensor, embedding: torch.Tensor, temperature: float, tensors: Tensors) -> torch.Tensor:
    """The negative free energy of the logits (Liu et al. 2020, arXiv:2010.03759)."""
    return logits.logsumexp(dim=1)


def cosine(logits: torch.Tensor, embedding: torch.Tensor, temperature: float, tensors: Tensors) -> torch.Tensor:
    """The cosine between the embedding and the nearest class mean, both seen from the centre of the class means."""
    return (F.normalize(embedding - tensors["centre"], dim=1) @ tensors["directions"]).amax(dim=1)


def mahalanobis(logits: torch.Tensor, embedding: torch.Tensor, temperature: float, tensors: Tensors) -> torch.Tensor:
    """The negative squared distance to the nearest class mean (Lee et al. 2018, arXiv:1807.03888), one covariance for all."""
    white = (embedding - tensors["centre"]) @ tensors["whitening"]
    means = tensors["white_means"]  # [K, F]
    squares = white.square().sum(dim=1, keepdim=True) - 2 * white @ means.T + means.square().sum(dim=1)
    return -squares.amin(dim=1)


SCORES: dict[str, Callable[[torch.Tensor, torch.Tensor, float, Tensors], torch.Tensor]] = {
    "probability": probability,
    "energy": energy,
    "cosine": cosine,
    "mahalanobis": mahalanobis,
}


class KnownScore(nn.Module):
    """Logits `[N, K]`, not yet divided by the temperature, and embedding `[N, F]` to `[N]`: higher is more surely known."""

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self.score, self.temperature = SCORES[calibration.score], calibration.temperature
        self.names = tuple(calibration.tensors)
        for name, tensor in calibration.tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, logits: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return self.score(logits, embedding, self.temperature, {name: getattr(self, name) for name in self.names})


def save_calibration(target: Path, calibration: Calibration) -> None:
    """Writes it atomically, sealed as a checkpoint is; equal ones give equal bytes."""
    header = json.dumps({name: getattr(calibration, name) for name in FACTS} | {"seal": UNSEALED})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in calibration.tensors.items()}
    write_bytes(target, sealed(save(tensors, metadata={HEADER_KEY: header})))


def load_calibration(source: Path) -> Calibration:
    """What `save_calibration` wrote; raises `UserError` for any other file."""
    try:
        whole = is_whole(source.read_bytes())
        with safe_open(source, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open does not iterate)
        calibration = Calibration(**{name: header[name] for name in FACTS}, tensors=tensors)
    except OSError as error:
        raise UserError(f"{source}: {error.strerror or error}; {REMEDY}") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: not a calibration of fieldguide ({error}); {REMEDY}") from error
    if not whole:
        raise UserError(f"{source}: its bytes are not those that were written; {REMEDY}")
    return calibration
