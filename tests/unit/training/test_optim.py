"""Learning rates against torch's own schedules; which parameters decay, and at what share of the rate; the average."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from timm.optim import Muon
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR, OneCycleLR

from fieldguide.core.params import Train
from fieldguide.network.models import NETWORKS, build
from fieldguide.training.optim import lr_at, make_optimizer, set_lr, update_average
from support.settings import PARAMS

TRAIN = PARAMS.train
COSINE = {  # from nothing to the peak, and down to nothing, with one rate for all layers
    "epochs": 1,
    "schedule": "cosine",
    "hold": 0.0,
    "lr_start": 0.0,
    "lr_end": 0.0,
    "head_epochs": 0,
    "backbone_lr": 1.0,
    "layer_decay": 1.0,
}


def train(**changes: object) -> Train:
    return Train(**(TRAIN.model_dump() | COSINE | changes))


def torch_rates(make_schedule, lr: float, n_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule, rates = make_schedule(optimizer), []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def rates(n_steps: int, **changes: object) -> list[float]:
    """The rate of every step, of `n_steps` in each epoch."""
    settings = train(**changes)
    return [lr_at(step, n_steps, settings) for step in range(settings.epochs * n_steps)]


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


@pytest.mark.parametrize("schedule", ["constant", "cosine", "exponential", "one_cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, 100])
def test_rates_are_above_zero_and_never_above_the_peak(schedule: str, warmup: float, n_steps: int) -> None:
    found = rates(n_steps, lr=0.1, warmup=warmup, schedule=schedule)
    assert min(found) > 0
    assert max(found) <= 0.1 + 1e-12


def test_warm_up_begins_at_its_share_of_the_peak() -> None:
    expected = torch_rates(lambda optimizer: LinearLR(optimizer, start_factor=0.25, total_iters=20), 0.1, 21)
    assert rates(100, lr=0.1, warmup=0.2, lr_start=0.25)[:20] == pytest.approx(expected[1:])


def test_the_cosine_ends_at_its_share_of_the_peak() -> None:
    expected = torch_rates(lambda optimizer: CosineAnnealingLR(optimizer, 80, eta_min=0.03), 0.1, 80)
    assert rates(100, lr=0.1, warmup=0.2, lr_end=0.3)[20:] == pytest.approx(expected)


def test_the_peak_is_held_between_warm_up_and_decline() -> None:
    found = rates(100, lr=0.1, warmup=0.2, hold=0.3)
    assert found[:20] == pytest.approx(rates(100, lr=0.1, warmup=0.2)[:20])
    assert found[20:50] == [pytest.approx(0.1)] * 30
    assert found[50:] == pytest.approx(torch_rates(lambda optimizer: CosineAnnealingLR(optimizer, 50), 0.1, 50))


@pytest.mark.parametrize(("warmup", "hold", "n_steps"), [(0.5, 0.5, 3), (0.5, 0.5, 7), (0.0, 1.0, 5), (0.3, 0.7, 10)])
def test_warm_up_and_hold_may_fill_the_whole_training(warmup: float, hold: float, n_steps: int) -> None:
    found = rates(n_steps, lr=0.1, warmup=warmup, hold=hold)
    assert found == sorted(found)
    assert found[-1] == pytest.approx(0.1)


def test_constant_stays_at_the_peak() -> None:
    found = rates(50, lr=0.1, warmup=0.2, schedule="constant", lr_end=0.5)
    assert found[:10] == pytest.approx(rates(50, lr=0.1, warmup=0.2)[:10])
    assert found[10:] == [pytest.approx(0.1)] * 40


@pytest.mark.parametrize(("lr_start", "lr_end"), [(0.04, 0.01), (0.5, 0.001)])
def test_one_cycle_is_torchs(lr_start: float, lr_end: float) -> None:
    expected = torch_rates(  # its steps are the ends of ours: the peak, our 20th and 21st, is there one step
        lambda optimizer: OneCycleLR(
            optimizer,
            max_lr=0.2,
            total_steps=101,
            pct_start=21 / 101,
            anneal_strategy="cos",
            cycle_momentum=False,
            div_factor=1 / lr_start,
            final_div_factor=lr_start / lr_end,
        ),
        0.2,
        101,
    )
    found = rates(100, lr=0.2, warmup=0.2, schedule="one_cycle", lr_start=lr_start, lr_end=lr_end)
    assert found[:20] == pytest.approx(expected[1:21])
    assert found[20:] == pytest.approx(expected[20:100])
    assert found[19] == found[20] == pytest.approx(0.2)


def test_exponential_is_torchs_from_epoch_to_epoch_and_even_between() -> None:
    expected = torch_rates(lambda optimizer: ExponentialLR(optimizer, 0.8), 0.1, 12)
    found = rates(5, epochs=12, lr=0.1, warmup=0.0, schedule="exponential", lr_decay=0.8)
    assert found[::5] == pytest.approx(expected)
    assert [after / before for before, after in pairwise(found)] == [pytest.approx(0.8 ** (1 / 5))] * 59


def test_exponential_with_ramp_and_hold_is_the_flower_systems() -> None:
    least, peak, start, n_ramp, n_hold, decay = 1e-5, 4e-4, 1e-5, 5, 2, 0.8

    def flower_rate(epoch: int) -> float:  # "Petals to the Metal" starter, with a ramp, a hold and a decay
        if epoch < n_ramp:
            return (peak - start) / n_ramp * epoch + start
        if epoch < n_ramp + n_hold:
            return peak
        return (peak - least) * decay ** (epoch - n_ramp - n_hold) + least

    n_steps, n_epochs = 8, 20
    found = rates(
        n_steps,
        epochs=n_epochs,
        lr=peak,
        schedule="exponential",
        warmup=n_ramp / n_epochs,
        hold=n_hold / n_epochs,
        lr_start=start / peak,
        lr_end=least / peak,
        lr_decay=decay,
    )
    for epoch in range(1, n_ramp + 1):  # each of our steps rises: an epoch's rate is reached by the step before it
        assert found[epoch * n_steps - 1] == pytest.approx(flower_rate(epoch))
    for epoch in range(n_ramp, n_epochs):
        assert found[epoch * n_steps] == pytest.approx(flower_rate(epoch))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "exponential", "one_cycle"])
def test_after_the_heads_epochs_the_schedule_runs_over_the_steps_that_remain(schedule: str) -> None:
    changes = {"lr": 0.1, "warmup": 0.2, "hold": 0.1, "lr_start": 0.1, "lr_end": 0.05, "schedule": schedule}
    found = rates(7, epochs=8, head_epochs=3, head_lr=0.012, **changes)
    assert found[:21] == [0.012] * 21
    assert found[21:] == pytest.approx(rates(7, epochs=5, **changes))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("muon", Muon)],
)
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


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("network", NETWORKS)
def test_biases_and_norms_do_not_decay_and_every_parameter_is_in_one_group(network: str, optimizer: str) -> None:
    model = build(network, 3)
    kernels = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
    groups = make_optimizer(model, train(optimizer=optimizer, weight_decay=0.02)).param_groups
    decays = [(id(parameter), group["weight_decay"]) for group in groups for parameter in group["params"]]
    assert len(decays) == len({key for key, _ in decays})
    assert dict(decays) == {id(p): 0.02 if id(p) in kernels else 0.0 for p in model.parameters()}


def test_frozen_parameters_are_in_the_groups_and_stand_still_until_they_are_thawed() -> None:
    model = build("cnn", 3)
    model.features.requires_grad_(False)
    optimizer = make_optimizer(model, TRAIN)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}
    set_lr(optimizer, 0.1)
    before = copy.deepcopy(model.state_dict())

    def moved() -> set[str]:
        optimizer.zero_grad()
        model(torch.rand(2, 3, 16, 16)).square().sum().backward()
        optimizer.step()
        return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}

    assert moved() == {"head.weight", "head.bias"}
    model.features.requires_grad_(True)
    assert moved() == {name for name, _ in model.named_parameters()}


def shares(network: str, **changes: object) -> dict[str, float]:
    """The share of the rate of each parameter."""
    model = build(network, 3, 64)
    groups = make_optimizer(model, train(**changes)).param_groups
    by_key = {id(parameter): group["share"] for group in groups for parameter in group["params"]}
    return {name: by_key[id(parameter)] for name, parameter in model.named_parameters()}


FROM_INPUT_TO_HEAD = {  # the blocks of each network, by what their parameters' names begin with
    "fieldnet": [*(f"features.{k}." for k in (0, 1, 3, 4, 5, 6, 7)), "head."],
    "cnn": ["features.0.", "features.3.", "features.6.", "features.9.", "head."],
    "resnet18": [*(f"features.{part}." for part in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")), "head."],
}


@pytest.mark.parametrize("network", FROM_INPUT_TO_HEAD)
def test_the_backbone_has_its_share_of_the_rate_and_each_block_before_its_last_one_less(network: str) -> None:
    found = shares(network, backbone_lr=0.3, layer_decay=0.7)
    *blocks, head = FROM_INPUT_TO_HEAD[network]
    expected = {head: 1.0} | {block: 0.3 * 0.7**depth for depth, block in enumerate(reversed(blocks))}
    for name, share in found.items():
        (block,) = (prefix for prefix in expected if name.startswith(prefix))
        assert share == pytest.approx(expected[block]), name
    assert {prefix for prefix in expected if any(name.startswith(prefix) for name in found)} == set(expected)


@pytest.mark.parametrize(("backbone_lr", "layer_decay", "backbone"), [(1.0, 1.0, 1.0), (0.1, 1.0, 0.1), (0.0, 0.5, 0.0)])
def test_without_layer_decay_the_whole_backbone_has_one_rate(backbone_lr: float, layer_decay: float, backbone: float) -> None:
    found = shares("fieldnet", backbone_lr=backbone_lr, layer_decay=layer_decay)
    assert {share for name, share in found.items() if name.startswith("features.")} == {backbone}
    assert {share for name, share in found.items() if name.startswith("head.")} == {1.0}


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.0, False)])
def test_sgd_is_nesterovs_when_there_is_momentum(momentum: float, nesterov: bool) -> None:
    for group in make_optimizer(build("cnn", 2), train(optimizer="sgd", momentum=momentum)).param_groups:
        assert (group["momentum"], group["nesterov"]) == (momentum, nesterov)


@pytest.mark.parametrize(("backbone_lr", "rates_set"), [(1.0, {0.125}), (0.5, {0.125, 0.0625})])
def test_a_rate_is_set_for_every_group_by_its_share(backbone_lr: float, rates_set: set[float]) -> None:
    optimizer = make_optimizer(build("fieldnet", 2), train(backbone_lr=backbone_lr))
    for _ in range(2):  # a second time changes nothing
        set_lr(optimizer, 0.125)
        assert {group["lr"] for group in optimizer.param_groups} == rates_set
        assert all(group["lr"] == 0.125 * group["share"] for group in optimizer.param_groups)


@pytest.mark.parametrize("backbone_lr", [1.0, 0.5])
def test_head_and_backbone_are_never_in_one_group(backbone_lr: float) -> None:
    """Thawed beside a head with momentum in one group, a backbone stops torch's fused SGD with a TypeError."""
    model = build("fieldnet", 2)
    head = {id(parameter) for parameter in model.head.parameters()}
    for group in make_optimizer(model, train(backbone_lr=backbone_lr)).param_groups:
        assert len({id(parameter) in head for parameter in group["params"]}) == 1


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))],
)
def test_steps_are_those_of_torchs_plain_optimizer(name: str, device: str) -> None:
    """Also where all weights are updated in one pass (CUDA), and where the backbone thaws after two steps."""
    torch.manual_seed(0)
    model = build("fieldnet", 3).to(device)
    twin = copy.deepcopy(model)
    ours = make_optimizer(model, train(optimizer=name, weight_decay=0.05, momentum=0.9, backbone_lr=0.5))
    assert ours.defaults["fused"] == (device == "cuda")
    twins = dict(zip(model.parameters(), twin.parameters(), strict=True))
    groups = [
        {"params": [twins[p] for p in group["params"]], "weight_decay": group["weight_decay"], "share": group["share"]}
        for group in ours.param_groups
    ]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    options = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    plain = kind(groups, lr=0.0, foreach=False, fused=False, **options)
    generator = torch.Generator(device).manual_seed(1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    head = set(model.head.parameters())
    for step, lr in enumerate((0.01, 0.03, 0.02, 0.01)):
        for parameter, same in twins.items():
            if step >= 2 or parameter in head:
                parameter.grad = torch.randn(parameter.shape, generator=generator, device=device)
                same.grad = parameter.grad.clone()
        for optimizer in (ours, plain):
            set_lr(optimizer, lr)
            optimizer.step()
    for old, parameter, same in zip(before, model.parameters(), twin.parameters(), strict=True):
        assert not torch.equal(old, parameter)
        torch.testing.assert_close(parameter, same, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_of_muon_is_orthogonal_in_each_matrix_and_of_adamws_size(network: str) -> None:
    torch.manual_seed(0)
    model = build(network, 40).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, train(optimizer="muon", weight_decay=0.0, momentum=0.95))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    set_lr(optimizer, 0.01)
    optimizer.step()
    n_matrices = 0
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).flatten(1) if parameter.ndim > 1 else None
        if moved is None or min(moved.shape) < 4:
            continue
        n_matrices += 1
        values = torch.linalg.svdvals(moved) / (0.01 * 0.2 * max(moved.shape) ** 0.5)
        assert 0.5 < values.min() <= values.max() < 1.5, name  # Newton-Schulz, in bf16, comes near 1
    assert n_matrices == sum(parameter.ndim > 1 for parameter in model.parameters())


def moving(n_steps: int) -> list[dict[str, torch.Tensor]]:
    """The state of a network with norms after each of `n_steps`, each far from the one before."""
    torch.manual_seed(0)
    model, states = build("fieldnet", 2).train(), []
    for _ in range(n_steps):
        with torch.no_grad():
            model(torch.rand(4, 3, 32, 32))
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        states.append(copy.deepcopy(model.state_dict()))
    return states


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_is_that_of_a_plain_loop_over_weights_and_statistics(decay: float) -> None:
    states = moving(7)
    average, model = build("fieldnet", 2), build("fieldnet", 2)
    first = copy.deepcopy(average.state_dict())
    for step, state in enumerate(states):
        model.load_state_dict(state)
        update_average(average, model, decay, step)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    found = average.state_dict()
    for name, start in first.items():
        if not start.is_floating_point():
            assert torch.equal(found[name], start), name
            continue
        expected = start.double()
        for t, state in enumerate(states, start=1):
            kept = min(decay, (1 + t) / (10 + t))
            expected = kept * expected + (1 - kept) * state[name].double()
        torch.testing.assert_close(found[name].double(), expected, atol=1e-4, rtol=1e-4)
    assert {name for name in found if name.endswith("running_var") and not torch.equal(found[name], first[name])}
    assert {name for name in found if name.endswith("num_batches_tracked")}


def test_after_a_few_steps_the_average_has_forgotten_the_first_weights() -> None:
    average, model = build("cnn", 2), build("cnn", 2)
    with torch.no_grad():
        for old, new in zip(average.parameters(), model.parameters(), strict=True):
            old.fill_(1.0)
            new.fill_(0.0)
    left = []
    for step in range(10):
        update_average(average, model, 0.9999, step)
        left.append(average.head.weight[0, 0].item())
    assert left[0] == pytest.approx(2 / 11)
    assert left[-1] < 1e-4
    for _ in range(5):
        update_average(average, model, 0.9999, 1_000_000)
    assert average.head.weight[0, 0].item() == pytest.approx(left[-1] * 0.9999**5, rel=1e-5)


@pytest.mark.parametrize("has_bf16", [False, True])
def test_muon_orthogonalises_in_a_dtype_that_the_hardware_computes(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    monkeypatch.setattr("fieldguide.training.optim.computes_bf16", lambda device: has_bf16)
    monkeypatch.setattr("timm.optim.muon.zeropower_via_newtonschulz", lambda update, *_, dtype, **__: seen.add(dtype) or update)
    model = build("cnn", 2)
    optimizer = make_optimizer(model, train(optimizer="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert seen == {torch.bfloat16 if has_bf16 else torch.float32}
