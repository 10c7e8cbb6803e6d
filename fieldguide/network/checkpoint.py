"""A trained network as one safetensors file, with its name, input size and classes in the header.

Also loads initial weights: those published for a network, or a file.
"""

import http.client
import json
import os
import pickle
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import nn

from fieldguide.core.errors import UserError
from fieldguide.core.files import UNSEALED, is_damaged, is_intact, seal, write_bytes
from fieldguide.core.manifest import Classes
from fieldguide.core.params import Model
from fieldguide.core.paths import CHECKPOINT, project_root
from fieldguide.network.models import NETWORKS, TIMM, Classifier, build, check_name, timm_features

HEADER_KEY = "fieldguide"  # a single key: safetensors writes several in random order
HEADER_BEGIN = 64  # bytes of a safetensors file that contain the first key of its header
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # of DataParallel and torch.compile
DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # torchvision's files use the names of 2017
FAILED = (OSError, RuntimeError, SafetensorError, http.client.HTTPException)  # with informative messages
DAMAGED = (AttributeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError, struct.error)  # of unpickling


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
        model.load_state_dict(_replaced(model.state_dict(), tensors))
    except RuntimeError as error:
        raise UserError(f"{source}: weights do not fit {facts.model} ({error}); create it with: dvc repro -f train") from error
    return model.eval().to(memory_format=torch.channels_last), facts


def load_weights(model: Classifier, settings: Model) -> str:
    """Loads the weights that `settings.weights` names into the backbone of `model`; returns a description of them.

    The head keeps its random weights. A file is a checkpoint of fieldguide or a state dict with the names of torchvision or
    timm (.safetensors, or written by torch.save; its code is not run). Raises `UserError` if weights cannot be obtained or
    do not match the backbone.
    """
    where = f"params.yaml: model.weights is {settings.weights}"
    if settings.weights == "none":
        return "random weights"
    if source := weights_file(settings):
        _fill(model.features, _read(source, where), f"{where}: {source} does not fit {settings.name}")
        return f"weights of {source}"
    if settings.name in NETWORKS:
        raise UserError(f"{where}, but {settings.name} has no published weights; set it to none or to the path of a file")
    if settings.name.startswith(TIMM):
        return _fill_from_timm(model.features, settings, where)
    return _fill_from_torchvision(model.features, settings, where)


def weights_file(settings: Model) -> Path | None:
    """The file that `settings.weights` names; None for `none` and `imagenet`."""
    is_file = settings.weights not in ("none", "imagenet")
    return project_root() / os.path.expanduser(settings.weights) if is_file else None


def _read(source: Path, where: str) -> Mapping[str, Any]:
    """The tensors of a file by name; raises `UserError`, whose text begins with `where`."""
    try:
        if source.suffix == ".safetensors":
            encoded = source.read_bytes()
            if HEADER_KEY.encode() in encoded[:HEADER_BEGIN] and not is_intact(encoded):
                raise UserError(f"{where}: {source} is damaged, its checksum does not match; copy it again")
            return load(encoded)
        content: Any = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        if source.resolve() == CHECKPOINT.resolve():  # DVC removes it before the stage runs
            raise UserError(
                f"{where}, which is the output of this stage; restore it (dvc checkout --force {CHECKPOINT}) and use a copy"
            ) from error
        raise UserError(f"{where}: {source} does not exist; use none, imagenet or the path of a file") from error
    except (*FAILED, *DAMAGED) as error:
        raise UserError(f"{where}: {source} cannot be read as weights ({_reason(error)}); use a state dict") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{where}: {source} contains no named tensors; use a state dict")
    return content


def _reason(error: Exception) -> str:
    """The first line of an error's text, except for unpickling errors, which advise running the file's code."""
    if isinstance(error, FAILED):
        return str(error).partition("\n")[0] or type(error).__name__
    return "damaged, or contains more than tensors"


def _fill(features: nn.Module, content: Mapping[str, Any], complaint: str) -> None:
    """Loads tensors into a backbone; raises `UserError`, whose text begins with `complaint`, if they do not match it.

    Ignores a classifier in `content`. Interpolates position embeddings of another image size.
    """
    own = features.state_dict()
    state = _in_own_names(content, features.state_dict())
    from_timm = getattr(sys.modules[type(features).__module__], "checkpoint_filter_fn", None)  # timm's convention
    try:
        if "encoder.pos_embedding" in own and "encoder.pos_embedding" in state:
            from torchvision.models.vision_transformer import interpolate_embeddings

            state = interpolate_embeddings(features.image_size, features.patch_size, state)
        missing, surplus = features.load_state_dict(from_timm(state, features) if from_timm else state, strict=False)
    except (KeyError, RuntimeError, ValueError) as error:
        faults = str(error).splitlines()[1:] or [str(error)]  # torch: a heading, then one line per tensor
        raise UserError(f"{complaint}: {len(faults)} of {len(own)} tensors, first {faults[0].strip()}") from error
    roots = {name.split(".")[0] for name in own}
    left_out = tuple(f"{path}." for path, module in features.named_modules() if isinstance(module, nn.Identity))
    surplus = [name for name in surplus if name.split(".")[0] in roots and not name.startswith(left_out)]
    for what, names in (("missing", missing), ("unexpected", surplus)):
        if names:
            raise UserError(
                f"{complaint}: {len(names)} tensors are {what}, first {names[0]} (the backbone has {len(own)}); "
                "set model.name to the network of these weights"
            )


def _in_own_names(content: Mapping[str, Any], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the names of the backbone; `own` is its state dict."""
    if "pixel_mean" in content:  # a checkpoint of fieldguide
        prefix = "features."
        return _replaced(own, {name.removeprefix(prefix): content[name] for name in content if name.startswith(prefix)})
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    state: Any = _replaced(own, {DENSENET.sub(r"\1\2", WRAPPERS.sub("", name)): tensors[name] for name in tensors})
    saved = getattr(content, "_metadata", {"": state._metadata[""]})  # required by mnasnet; not in safetensors
    state._metadata = {WRAPPERS.sub("", f"{name}.").removesuffix("."): version for name, version in saved.items()}
    return state


def _replaced(state: dict[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict with other tensors and its own versions of modules, by which torch converts old names."""
    state.clear()
    state.update(tensors)
    return state


def _fill_from_torchvision(features: nn.Module, settings: Model, where: str) -> str:
    from torchvision.models import get_model_weights

    published = get_model_weights(settings.name).DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", published.url.rpartition("/")[2])
    try:
        state = published.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True)
    except (*FAILED, *DAMAGED) as error:
        raise UserError(
            f"{where}, but {published.url} could not be downloaded ({_reason(error)}); save the file as {file}, "
            "or set model.weights to its path"
        ) from error
    _fill(features, state, f"{where}: {file} does not fit {settings.name}")
    return f"ImageNet weights of torchvision, {file.name}"


def _fill_from_timm(features: nn.Module, settings: Model, where: str) -> str:
    import timm

    published = timm.get_pretrained_cfg(settings.name.removeprefix(TIMM))
    if not published or not (published.hf_hub_id or published.url):
        raise UserError(f"{where}, but {settings.name} has no published weights; set it to none or to the path of a file")
    file = f"https://huggingface.co/{published.hf_hub_id}/model.safetensors" if published.hf_hub_id else published.url
    try:
        with torch.random.fork_rng(devices=[]):  # timm draws random weights first
            features.load_state_dict(timm_features(settings.name, settings.image_px, pretrained=True).state_dict())
    except (*FAILED, *DAMAGED) as error:
        raise UserError(
            f"{where}, but {file} could not be downloaded ({_reason(error)}); download it elsewhere and set model.weights "
            "to its path"
        ) from error
    return f"published weights of timm, {published.hf_hub_id or published.url}"
