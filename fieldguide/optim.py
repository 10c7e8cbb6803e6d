"""Optimisers with their parameter groups, and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from fieldguide.params import Train


def make_optimizer(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    """The optimiser that `train.optimizer` names, at the rate 0 until `set_lr`; no decay on biases and norms."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    match train.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=train.momentum, nesterov=train.momentum > 0)
        case "adam":
            return torch.optim.Adam(groups, lr=0.0)
        case "adamw":
            return torch.optim.AdamW(groups, lr=0.0)


def lr_at(step: int, n_steps: int, train: Train) -> float:
    """A straight rise over the first `warmup` of the steps, then half a cosine down to zero at the end."""
    n_warmup = round(train.warmup * n_steps)
    if step < n_warmup:
        return train.lr * (step + 1) / n_warmup
    progress = (step - n_warmup) / max(n_steps - n_warmup, 1)
    return train.lr * 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The rate of every group for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
