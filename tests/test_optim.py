"""Learning rates against torch's own schedules, and which parameters decay."""

import math

import pytest
import torch
from conftest import ROOT
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from fieldguide.models import NETWORKS, build
from fieldguide.optim import lr_at, make_optimizer, set_lr
from fieldguide.params import Train, read_params

TRAIN = read_params(ROOT / "params.yaml").train


def train(**changes: object) -> Train:
    return Train(**(TRAIN.model_dump() | changes))


def torch_rates(make_schedule, lr: float, n_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule, rates = make_schedule(optimizer), []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def rates(n_steps: int, **changes: object) -> list[float]:
    return [lr_at(step, n_steps, train(**changes)) for step in range(n_steps)]


def test_warm_up_is_torchs_linear_schedule_and_ends_at_the_peak() -> None:
    expected = torch_rates(lambda optimizer: LinearLR(optimizer, start_factor=1 / 20, total_iters=19), 0.1, 20)
    assert rates(100, lr=0.1, warmup=0.2)[:20] == pytest.approx(expected)
    assert expected[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(("warmup", "n_warmup"), [(0.0, 0), (0.2, 20), (0.5, 50)])
def test_after_warm_up_it_is_torchs_cosine(warmup: float, n_warmup: int) -> None:
    n_left = 100 - n_warmup
    expected = torch_rates(lambda optimizer: CosineAnnealingLR(optimizer, n_left), 0.1, n_left)
    assert rates(100, lr=0.1, warmup=warmup)[n_warmup:] == pytest.approx(expected)


def test_known_rates_of_a_hundred_steps() -> None:
    found = rates(100, lr=0.1, warmup=0.2)
    assert found[0] == pytest.approx(0.005)
    assert found[19] == found[20] == pytest.approx(0.1)
    assert found[60] == pytest.approx(0.05)
    assert found[99] == pytest.approx(0.05 * (1 - math.cos(math.pi / 80)))
    assert lr_at(100, 100, train(lr=0.1, warmup=0.2)) == pytest.approx(0, abs=1e-12)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rates(10, lr=0.3, warmup=0.0)[0] == pytest.approx(0.3)


def test_warm_up_over_all_steps_rises_to_the_peak() -> None:
    assert rates(4, lr=0.4, warmup=1.0) == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_a_single_step_has_the_peak(warmup: float) -> None:
    assert rates(1, lr=0.25, warmup=warmup) == pytest.approx([0.25])


@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, 100])
def test_rates_are_above_zero_and_never_above_the_peak(warmup: float, n_steps: int) -> None:
    found = rates(n_steps, lr=0.1, warmup=warmup)
    assert min(found) > 0
    assert max(found) <= 0.1 + 1e-12


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimizer_is_the_one_named_and_stands_still_until_a_rate_is_set(name: str, kind: type) -> None:
    model = build("cnn", 2)
    optimizer = make_optimizer(model, train(optimizer=name))
    assert type(optimizer) is kind
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.rand(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    set_lr(optimizer, 0.01)
    optimizer.step()
    assert not all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("network", NETWORKS)
def test_biases_and_norms_do_not_decay_and_every_parameter_is_in_one_group(network: str, optimizer: str) -> None:
    model = build(network, 3)
    kernels = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
    groups = make_optimizer(model, train(optimizer=optimizer, weight_decay=0.02)).param_groups
    decays = [(id(parameter), group["weight_decay"]) for group in groups for parameter in group["params"]]
    assert len(decays) == len({key for key, _ in decays})
    assert dict(decays) == {id(p): 0.02 if id(p) in kernels else 0.0 for p in model.parameters()}


def test_frozen_parameters_are_left_out() -> None:
    model = build("cnn", 3)
    model.features.requires_grad_(False)
    groups = make_optimizer(model, TRAIN).param_groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.head.parameters()}


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.0, False)])
def test_sgd_is_nesterovs_when_there_is_momentum(momentum: float, nesterov: bool) -> None:
    for group in make_optimizer(build("cnn", 2), train(optimizer="sgd", momentum=momentum)).param_groups:
        assert (group["momentum"], group["nesterov"]) == (momentum, nesterov)


def test_a_rate_is_set_for_every_group() -> None:
    optimizer = make_optimizer(build("fieldnet", 2), TRAIN)
    set_lr(optimizer, 0.123)
    assert [group["lr"] for group in optimizer.param_groups] == [0.123, 0.123]
