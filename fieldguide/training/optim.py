"""Optimisers with their parameter groups, and the learning rate schedule."""

import math
from functools import partial

import torch
from torch import nn

from fieldguide.core.params import Train
from fieldguide.network.device import computes_bf16
from fieldguide.network.models import Classifier, block_numbers


def make_optimizer(model: Classifier, train: Train) -> torch.optim.Optimizer:
    """The optimiser that `train.optimizer` names, with learning rate 0 until `set_lr`.

    Biases and norms have no weight decay. A group's `share` is its learning rate relative to the head's: `backbone_lr` for
    the backbone's last block, and a further factor `layer_decay` for each block before it. Head and backbone are in separate
    groups, because a fused update needs state for all weights of a group or for none. Muon (Jordan et al. 2024) updates
    matrices and flattened convolutions, with the step size of AdamW (Liu et al. 2025, arXiv:2502.16982), which updates the
    rest.
    """
    blocks = block_numbers(model)
    head = max(blocks.values())
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        is_head = blocks[name] == head
        share = 1.0 if is_head else train.backbone_lr * train.layer_decay ** (head - 1 - blocks[name])
        groups.setdefault((share, parameter.ndim > 1, is_head), []).append(parameter)
    settings = [
        {"params": parameters, "share": share, "weight_decay": train.weight_decay if decays else 0.0}
        for (share, decays, _), parameters in groups.items()
    ]
    fused = model.head.weight.is_cuda  # no gain on the CPU
    match train.optimizer:
        case "sgd":
            return torch.optim.SGD(settings, lr=0.0, momentum=train.momentum, nesterov=train.momentum > 0, fused=fused)
        case "adam":
            return torch.optim.Adam(settings, lr=0.0, fused=fused)
        case "adamw":
            return torch.optim.AdamW(settings, lr=0.0, fused=fused)
        case "muon":
            from timm.optim import muon

            # timm orthogonalises in bf16, which a CPU without bf16 instructions emulates: ten times slower
            dtype = torch.bfloat16 if computes_bf16(model.head.weight.device) else torch.float32
            muon.zeropower_via_newtonschulz = partial(muon.zeropower_via_newtonschulz, dtype=dtype)
            return muon.Muon(settings, lr=0.0, momentum=train.momentum, nesterov=True)


def lr_at(step: int, steps_per_epoch: int, train: Train) -> float:
    """The head's learning rate at a step, counted from 0 over all epochs.

    `head_lr` while the backbone is frozen, then warm-up from `lr_start` to the peak, a hold, and `schedule` down to `lr_end`.
    one_cycle also warms up along a cosine (Smith and Topin 2017, arXiv:1708.07120).
    """
    n_head = train.head_epochs * steps_per_epoch
    if step < n_head:
        return train.head_lr
    step, n_steps = step - n_head, train.epochs * steps_per_epoch - n_head
    n_warmup, n_hold = round(train.warmup * n_steps), round(train.hold * n_steps)
    if step < n_warmup:
        risen = (step + 1) / n_warmup
        if train.schedule == "one_cycle":
            risen = 0.5 * (1 - math.cos(math.pi * risen))
        return train.lr * (train.lr_start + (1 - train.lr_start) * risen)
    fallen = max(step - n_warmup - n_hold, 0)
    match train.schedule:
        case "constant":
            left = 1.0
        case "exponential":
            left = train.lr_decay ** (fallen / steps_per_epoch)
        case "cosine" | "one_cycle":
            left = 0.5 * (1 + math.cos(math.pi * fallen / max(n_steps - n_warmup - n_hold, 1)))
    return train.lr * (train.lr_end + (1 - train.lr_end) * left)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every group from the head's."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Updates the moving average of the weights (and of the norms' statistics) after `step` (from 0).

    The decay is min(decay, (1 + t) / (10 + t)) after t steps, so that the average forgets the initial weights.
    """
    decay = min(decay, (2 + step) / (11 + step))
    kept, new = list(average.state_dict().values()), list(model.state_dict().values())
    floats = [k for k, tensor in enumerate(kept) if tensor.is_floating_point()]
    torch._foreach_lerp_([kept[k] for k in floats], [new[k] for k in floats], 1 - decay)
