"""Verdicts: each planted fault gives the right rule, layer and remedy; healthy runs give none."""

import json
import math
import os
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from monitored import QUIET, classifier, fit, written
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from normzoo.callbacks import (
    ActivationPercentiles,
    CovariateShift,
    FiniteLoss,
    GradientFlow,
    RunningStatistics,
    Verdicts,
)
from normzoo.data import Digits
from normzoo.errors import InputError
from normzoo.models import MLP, ConvNet, Normal, ResNet, Xavier
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.verdicts import RULES, Evidence, Sample, Thresholds, Verdict, judge
from normzoo.norms import BatchNorm, GroupNorm, LayerNorm, NoNorm, RMSNorm
from normzoo.tasks import Classifier, WarmupCosine

# The rules alone, on tables made by hand.

T = Thresholds()
Table = Mapping[str, Mapping[str, float]]


def evidence(monitor: str, tables: Sequence[Table], every: int = 20, **facts: Any) -> Evidence:
    """The samples of one monitor, at steps 0, 20, 40 ..."""
    samples = [Sample(i * every, table) for i, table in enumerate(tables)]
    starts = {monitor: [one.step for one in samples[:2]]}
    return Evidence({monitor: samples}, starts, **{"steps": every * len(tables), **facts})


def flow(*shares: float, last: float = 0.01) -> Table:
    return {"flow_norm": {f"net.{i}": share * last for i, share in enumerate((*shares, 1.0))}}


def turn(value: float) -> Table:
    return {"turn": {"net.0": 1e-2, "net.1": value, "net.2": 2e-2}}


def lag(value: float) -> Table:
    return {"running_lag": {"net.1": value, "net.4": 0.0}}


def distance(value: float, floor: float = 0.05) -> Table:
    return {
        "val_w2": {"net.0": value, "net.1": 9.0, "net.3": 0.1},
        "val_w2_floor": dict.fromkeys(("net.0", "net.1"), floor),
    }


# name -> rule, layer, threshold, whether it holds above it, evidence from a value
EDGES: dict[str, tuple[str, str, float, bool, Callable[[float], Evidence]]] = {
    "gradient vanishes": (
        "vanishing",
        "net.1",
        T.vanishing,
        False,
        lambda x: evidence("GradientFlow", [flow(x, x)] * 2),
    ),
    "gradient explodes": ("exploding", "net.1", T.exploding, True, lambda x: evidence("GradientFlow", [flow(x, x)])),
    "rate": (
        *("exploding", "net.0", T.update, True),
        lambda x: evidence("GradientFlow", [{"update_ratio": {"net.0": x, "net.1": 0.5, "net.2": 0.1}}]),
    ),
    "activations": (
        *("exploding", "net.2", T.growth, True),
        lambda x: Evidence(
            {
                "GradientFlow": [Sample(0, flow(1, 1))],
                "CovariateShift": [Sample(0, {"std": {"net.0": 2.0, "net.1.norm": 1e6, "net.1": 2.0, "net.2": 2 * x}})],
            }
        ),
    ),
    "dead": (
        "dead",
        "act.1",
        T.dead,
        True,
        lambda x: evidence("ActivationPercentiles", [{"dead": {"act.0": 0.5, "act.1": x}}]),
    ),
    "saturated": (
        *("saturated", "act.1", T.saturated, True),
        lambda x: evidence(
            "ActivationPercentiles", [{"saturated": {"act.0": 1.0, "act.1": x}}] * 2, two_sided={"act.1"}
        ),
    ),
    "lag": ("running_lag", "net.1", T.running_lag, True, lambda x: evidence("RunningStatistics", [lag(x)] * 4)),
    "shift": ("shift", "net.0", T.shift, True, lambda x: evidence("CovariateShift", [distance(x)])),
    "shift above noise": ("shift", "net.0", 0.9, True, lambda x: evidence("CovariateShift", [distance(x, floor=0.3)])),
    "still": ("not_learning", "net.1", T.not_learning, False, lambda x: evidence("GradientFlow", [turn(x)] * 3)),
}


@pytest.mark.parametrize("case", EDGES)
def test_a_rule_holds_beyond_its_threshold_alone(case: str) -> None:
    rule, layer, threshold, above, made = EDGES[case]
    inside, outside = threshold * (1 - 1e-3), threshold * (1 + 1e-3)
    beyond, within = (outside, inside) if above else (inside, outside)
    assert judge(made(within), T, ()) == []
    [found] = judge(made(beyond), T, ())
    assert (found.rule, found.layer) == (rule, layer)
    assert found.value == pytest.approx(beyond)
    assert found.threshold == pytest.approx(threshold)
    assert layer in found.text
    assert f"step {found.step}" in found.text
    assert found.remedy.endswith(".")


X = 1e-9
SILENT: dict[str, Evidence] = {
    "no sample": Evidence({}),
    "an empty table": evidence("GradientFlow", [{}] * 3),
    "vanishes in one sample": evidence("GradientFlow", [flow(X, X), flow(1, 1), flow(X, X)]),
    "a branch gets little": evidence("GradientFlow", [flow(1, X, 1)] * 3),
    "the loss is zero": evidence("GradientFlow", [flow(0, 0, last=0)] * 3),
    "one layer starts near 0": evidence("GradientFlow", [{"update_ratio": {"net.0": 0.01, "head": 50.0}}]),
    "the inputs are small": Evidence(
        {
            "GradientFlow": [Sample(0, flow(1))],
            "CovariateShift": [Sample(0, {"std": {"net.0": 1e-3, "net.1": 1.0}})],
        }
    ),
    "a two-sided one is dead": evidence("ActivationPercentiles", [{"dead": {"a": 1.0}}] * 2, two_sided={"a"}),
    "an output is sure of itself": evidence(
        "ActivationPercentiles", [{"saturated": {"act.1": 1.0}}] * 2, two_sided={"act.1"}, outputs={"act.1"}
    ),
    "ReLU is flat": evidence("ActivationPercentiles", [{"saturated": {"a": 1.0}}] * 2),
    "lags in the warm-up": evidence("RunningStatistics", [lag(1)] * 4, steps=600),
    "lags less and less": evidence("RunningStatistics", [lag(2.0**-i) for i in range(4)], steps=160),
    "lags in one sample": evidence("RunningStatistics", [lag(0), lag(1), lag(0), lag(1)]),
    "no noise floor": evidence("CovariateShift", [{"val_w2": {"net.0": 9.0, "net.1": 9.0}}]),
    "one layer has a rare feature": evidence("CovariateShift", [distance(0.1)]),
    "still for two samples": evidence("GradientFlow", [turn(0)] * 2),
    "learned before": evidence("GradientFlow", [turn(1), turn(0), turn(0)]),
    "begins to learn": evidence("GradientFlow", [turn(0), turn(1e-9), turn(7e-7)]),
    "the rate is zero": evidence("GradientFlow", [{"turn": dict.fromkeys("abc", 0.0)}] * 3),
    "constant channels": evidence("CovariateShift", [{"drift_kl": {"net.0": math.inf}}]),
    "nothing by nothing": evidence("GradientFlow", [{**flow(1, 1), "grad_ratio": {"net.0": math.nan}}]),
    "a scaled loss overflows once": evidence("GradientFlow", [flow(1), flow(math.inf)], scales_loss=True),
}


@pytest.mark.parametrize("case", SILENT)
def test_rules_are_silent(case: str) -> None:
    assert judge(SILENT[case], T, ()) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "monitor,table",
    [
        ("GradientFlow", lambda x: flow(1, x, 1)),
        ("GradientFlow", lambda x: {"grad_norm": {"net.0": 1.0, "net.1": x}}),
        ("CovariateShift", lambda x: {"mean": {"net.0": 0.0, "net.1": x}}),
        ("CovariateShift", lambda x: {"std": {"net.0": 1.0, "net.1": x}}),
        ("LossLandscape", lambda x: {"loss": {"net.1": x}}),
    ],
)
def test_what_is_not_finite_is_named(monitor: str, table: Callable[[float], Table], bad: float) -> None:
    [found] = judge(evidence(monitor, [table(bad)]), T, ())
    assert (found.rule, found.layer, found.step) == ("non_finite", "net.1", 0)
    [again] = judge(evidence(monitor, [table(bad)] * 2, scales_loss=True), T, ())
    assert again.step == 20


def test_what_follows_from_a_fault_is_not_named_beside_it() -> None:
    samples = {
        "GradientFlow": [
            Sample(t, {**flow(0, 0), "turn": {"net.0": 0.0, "net.1": 1.0, "net.2": 1.0}}) for t in range(3)
        ],
        "ActivationPercentiles": [Sample(t, {"dead": {"act": 1.0}}) for t in range(3)],
    }
    assert [one.rule for one in judge(Evidence(samples), T, ())] == ["dead"]
    assert judge(Evidence(samples), T, ["exploding"]) == []
    without = {"GradientFlow": samples["GradientFlow"]}
    assert [one.rule for one in judge(Evidence(without), T, ())] == ["vanishing"]
    assert judge(Evidence(without), T, ["vanishing"]) == []
    [after] = judge(evidence("GradientFlow", [flow(math.nan)]), T, ["exploding"])
    assert (after.rule, "explodes" in after.remedy) == ("non_finite", True)
    large = evidence("GradientFlow", [{**flow(1e6, 1e3), "update_ratio": {"net.0": 9.0, "net.1": 9.0}}])
    assert "Initialize" in judge(large, T, ())[0].remedy


def test_of_dead_units_and_a_gradient_that_vanishes_the_first_is_the_cause() -> None:
    def rules(shares: Mapping[int, float], vanished: Mapping[int, float]) -> list[str]:
        """From step -> share of dead units, and step -> the first layer's share of the gradient."""
        units = [Sample(step, {"input_width": {"a": 1.0}, "dead": {"a": share}}) for step, share in shares.items()]
        flows = [Sample(step, flow(share)) for step, share in vanished.items()]
        return [one.rule for one in judge(Evidence({"GradientFlow": flows, "ActivationPercentiles": units}), T, ())]

    assert rules({0: 1}, {0: 0}) == ["dead"]
    assert rules({0: 0}, {0: 0, 50: 0}) == ["vanishing"]
    assert rules({0: 0}, {50: 0, 100: 0}) == []  # the units may be dead by now
    assert rules({0: 0, 100: 0}, {50: 0, 100: 0}) == ["vanishing"]
    assert rules({0: 0, 100: 1}, {0: 1, 50: 0, 100: 0}) == ["dead"]
    assert rules({0: 0, 100: 1}, {0: 0, 50: 0, 100: 0}) == ["vanishing"]


# Runs.

Net = Callable[[], nn.Module]
Plant = Callable[[Classifier], None]
mlp = partial(MLP, (1, 8, 8), 10)
conv = partial(ConvNet, (1, 8, 8), 10, widths=(8, 8, 16))
slow_norm = partial(BatchNorm, momentum=1e-4)


class Brighter(pl.Callback):
    """Adds to the images of validation and test."""

    def __init__(self, by: float = 1.0, validation: bool = True) -> None:
        self.by, self.validation = by, validation

    def on_validation_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, *unused: Any) -> None:
        if self.validation:
            batch[0].add_(self.by)

    def on_test_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, *unused: Any) -> None:
        batch[0].add_(self.by)


def blocks(task: Classifier) -> Any:
    return task.net.get_submodule("hidden" if isinstance(task.net, MLP) else "stack")


def kill(task: Classifier, layer: int) -> None:
    """Gives a layer, or its norm, a bias that keeps every ReLU off."""
    block = blocks(task)[layer]
    bias = block.layer.bias if getattr(block.norm, "bias", None) is None else block.norm.bias
    nn.init.constant_(bias, -10.0)


def scale(task: Classifier, by: float, layers: slice = slice(None)) -> None:
    for block in blocks(task)[layers]:
        block.layer.weight.data.mul_(by)


def freeze(task: Classifier, layer: int) -> None:
    blocks(task)[layer].layer.requires_grad_(False)


def judged(
    net: Net,
    optimizer: Callable[..., Optimizer] | None = None,
    *,
    plant: Plant | None = None,
    steps: int = 100,
    every: int = 20,
    batch: int = 60,
    seed: int = 0,
    callbacks: Sequence[pl.Callback] = (),
    **settings: Any,
) -> list[Verdict]:
    """The verdicts on a run on Digits."""
    torch.manual_seed(seed)
    task = Classifier(
        net(),
        optimizer=optimizer or partial(SGD, lr=0.05),
        lr_scheduler=settings.pop("lr_scheduler", None),
        num_classes=10,
    )
    if plant is not None:
        plant(task)
    verdicts = Verdicts(summary=False, growth=settings.pop("growth", T.growth))
    monitors = [RunningStatistics(every), CovariateShift(every), GradientFlow(every), ActivationPercentiles(every)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Trainer has no logger")
        data = Digits(batch_size=batch, shuffle_seed=seed)
        options = {"limit_val_batches": 1.0, "max_steps": steps, **settings}
        fit(task, [*monitors, *callbacks, verdicts], None, data, **options)
    return verdicts.found


# name -> run, rule, a part of the layer's name, words of the remedy
PLANTED: dict[str, tuple[Callable[..., list[Verdict]], str, str, str]] = {
    "dead": (partial(judged, mlp, plant=partial(kill, layer=1)), "dead", "hidden.1.activation", "bias"),
    "rate 30": (
        partial(judged, mlp, partial(SGD, lr=30.0), steps=40),
        "exploding",
        "",
        "Lower the learning rate from 30",
    ),
    "exploding init": (
        *(partial(judged, partial(mlp, norm=NoNorm, init=Normal(1.0)), partial(Adam, lr=1e-3)), "exploding", "hidden."),
        "Initialize with smaller weights",
    ),
    "momentum 1e-4": (
        partial(judged, partial(mlp, norm=slow_norm)),
        "running_lag",
        "norm",
        "momentum from 0.0001 to 0.1",
    ),
    "brighter validation": (partial(judged, mlp, callbacks=[Brighter()]), "shift", "hidden.0.layer", "validation"),
    "frozen": (
        partial(judged, mlp, plant=partial(freeze, layer=1)),
        "not_learning",
        "hidden.1.layer",
        "requires_grad_",
    ),
    "deep sigmoid": (
        *(partial(judged, partial(mlp, norm=NoNorm, activation=nn.Sigmoid, hidden=[40] * 8)), "vanishing", "hidden."),
        "Normalize activations",
    ),
    "saturated tanh": (
        partial(judged, partial(mlp, norm=NoNorm, activation=nn.Tanh), plant=partial(scale, by=10, layers=slice(1, 2))),
        *("saturated", "hidden.1.activation", "smaller weights"),
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_named(fault: str) -> None:
    run, rule, layer, words = PLANTED[fault]
    found = run()
    assert [one.rule for one in found] == [rule]
    assert layer in found[0].layer
    assert words in found[0].remedy


@pytest.mark.parametrize("gain,rule", [(1e-3, "vanishing"), (1e4, "exploding")])
def test_where_gradients_vanish_or_explode_is_named(gain: float, rule: str) -> None:
    def net() -> nn.Module:
        layers = [nn.Linear(64, 64) for _ in range(4)]
        for i, layer in enumerate(layers):
            nn.init.eye_(layer.weight).data.mul_(gain / 3 if i == 3 else 1.0)
            nn.init.zeros_(layer.bias)
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))

    [found] = judged(net, partial(SGD, lr=0.0), growth=1e9, every=1, steps=3)
    assert (found.rule, found.layer, found.step) == (rule, "net.3", 1 if rule == "vanishing" else 0)


@pytest.mark.parametrize("step", [0, 6])
def test_a_batch_that_is_not_finite_is_named(step: int) -> None:
    class Breaks(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, *unused: Any) -> None:
            if trainer.global_step == step:
                batch[0][0] = torch.nan

    found = judged(mlp, callbacks=[Breaks()], every=2, steps=10)
    assert [(one.rule, one.step) for one in found] == [("non_finite", step)]
    assert found[0].layer == "net.hidden.0.layer"


groups = partial(GroupNorm, num_groups=4)
sigmoids = partial(mlp, norm=NoNorm, activation=nn.Sigmoid)
tanhs = partial(mlp, norm=NoNorm, activation=nn.Tanh)
HEALTHY: dict[str, Callable[..., list[Verdict]]] = {
    "BatchNorm, SGD, batches of 16": partial(judged, mlp, batch=16),
    "NoNorm, momentum, to a loss near zero": partial(
        judged, partial(mlp, norm=NoNorm), partial(SGD, lr=0.1, momentum=0.9), steps=300
    ),
    "zero head, rate to zero, weight decay": partial(
        *(judged, mlp, partial(AdamW, lr=1e-2, weight_decay=0.1)),
        plant=lambda task: nn.init.zeros_(task.net.get_submodule("head").weight),
        lr_scheduler=WarmupCosine,
    ),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_a_healthy_run_is_silent(case: str) -> None:
    assert HEALTHY[case]() == []


# The same with other networks, optimizers and seeds.

MORE_PLANTED: dict[str, tuple[Callable[..., list[Verdict]], str, str]] = {
    **{
        f"dead ReLUs in layer {i} of {n}": (
            partial(judged, partial(mlp, hidden=[64] * n), plant=partial(kill, layer=i)),
            "dead",
            f"hidden.{i}.activation",
        )
        for i, n in ((0, 3), (2, 3), (0, 1), (4, 8))
    },
    "dead, without norm": (
        partial(judged, partial(mlp, norm=NoNorm), plant=partial(kill, layer=1), batch=16),
        "dead",
        "hidden.1.activation",
    ),
    "dead, LayerNorm, Adam": (
        partial(
            judged, partial(mlp, norm=LayerNorm, hidden=[50] * 5), partial(Adam, lr=1e-3), plant=partial(kill, layer=3)
        ),
        *("dead", "hidden.3.activation"),
    ),
    "dead GELUs": (
        partial(judged, partial(mlp, norm=NoNorm, activation=nn.GELU), plant=partial(kill, layer=1)),
        "dead",
        "hidden.1.activation",
    ),
    "dead, convolutions": (partial(judged, conv, plant=partial(kill, layer=1), steps=60), "dead", "stack.1.activation"),
    **{
        f"rate 30, {name}": (partial(judged, net, partial(SGD, lr=30.0), steps=100, batch=size), "exploding", "")
        for name, net, size in (
            ("sigmoids", partial(mlp, activation=nn.Sigmoid), 60),
            ("without norm", partial(mlp, norm=NoNorm), 128),
            ("eight layers", partial(mlp, hidden=[64] * 8), 60),
            ("LayerNorm, GELU", partial(mlp, norm=LayerNorm, activation=nn.GELU), 16),
            ("convolutions", conv, 60),
            ("ResNet-8", partial(ResNet, (1, 8, 8), 10, depth=8, width=8), 60),
        )
    },
    "rate 1 of Adam": (partial(judged, mlp, partial(Adam, lr=1.0)), "exploding", ""),
    **{
        f"init {std:g}, {depth} layers, {name}": (
            partial(judged, partial(mlp, norm=NoNorm, init=Normal(std), hidden=[100] * depth), optimizer),
            *("exploding", ""),
        )
        for std, depth, name, optimizer in (
            (1.0, 3, "SGD", partial(SGD, lr=0.05)),
            (0.5, 8, "Adam", partial(Adam, lr=1e-3)),
            (1.0, 8, "SGD", partial(SGD, lr=1e-3)),
            (3.0, 3, "Adam", partial(Adam, lr=1e-3)),
        )
    },
    "init 1, convolutions": (
        partial(judged, partial(conv, norm=NoNorm, init=Normal(1.0)), partial(Adam, lr=1e-3)),
        "exploding",
        "",
    ),
    **{
        f"momentum 1e-4, {name}": (
            partial(judged, net, optimizer, steps=steps, every=30, batch=size),
            "running_lag",
            "norm",
        )
        for name, net, optimizer, steps, size in (
            ("600 steps", partial(mlp, norm=slow_norm), partial(SGD, lr=0.1), 600, 60),
            (
                "batches of 16, tanh",
                partial(mlp, norm=slow_norm, activation=nn.Tanh),
                partial(SGD, lr=0.05, momentum=0.9),
                600,
                16,
            ),
            (
                "batches of 256, Adam",
                partial(mlp, norm=slow_norm, activation=nn.GELU),
                partial(Adam, lr=1e-3),
                200,
                256,
            ),
            (
                "sigmoids",
                partial(mlp, norm=slow_norm, activation=nn.Sigmoid, init=Normal(0.1)),
                partial(SGD, lr=0.1),
                600,
                60,
            ),
            ("convolutions", partial(conv, norm=slow_norm), partial(SGD, lr=0.1), 200, 60),
            (
                "ResNet-8",
                partial(ResNet, (1, 8, 8), 10, depth=8, width=8, norm=slow_norm),
                partial(AdamW, lr=1e-3),
                200,
                16,
            ),
        )
    },
    **{
        f"brighter by {by:g}, {name}": (
            partial(judged, net, callbacks=[Brighter(by)], every=10, batch=size),
            "shift",
            layer,
        )
        for by, name, net, size, layer in (
            (0.7, "LayerNorm", partial(mlp, norm=LayerNorm, activation=nn.Tanh), 60, "hidden.0.layer"),
            (1.0, "without norm", partial(mlp, norm=NoNorm), 16, "hidden.0.layer"),
            (1.5, "five layers", partial(mlp, hidden=[50] * 5), 128, "hidden.0.layer"),
            (1.0, "convolutions", conv, 60, "stack.0.layer"),
            (1.0, "ResNet-8", partial(ResNet, (1, 8, 8), 10, depth=8, width=8), 60, "stem.layer"),
        )
    },
    "frozen first layer, AdamW": (
        partial(judged, partial(mlp, activation=nn.Tanh), partial(AdamW, lr=1e-3), plant=partial(freeze, layer=0)),
        *("not_learning", "hidden.0.layer"),
    ),
    "frozen convolution, weight decay": (
        partial(judged, conv, partial(SGD, lr=0.05, weight_decay=1e-3), plant=partial(freeze, layer=2)),
        *("not_learning", "stack.2.layer"),
    ),
    "all but the head frozen": (
        partial(judged, mlp, plant=lambda task: task.net.get_submodule("hidden").requires_grad_(False)),
        *("not_learning", "hidden.0.layer"),
    ),
    **{
        f"{depth} sigmoids, {name}": (
            partial(judged, partial(sigmoids, hidden=[60] * depth), optimizer),
            "vanishing",
            "hidden.",
        )
        for depth, name, optimizer in (
            (7, "SGD", partial(SGD, lr=0.1)),
            (10, "Adam", partial(Adam, lr=1e-3)),
            (20, "SGD", partial(SGD, lr=0.5)),
        )
    },
    "20 tanh with small weights": (
        partial(judged, partial(tanhs, init=Normal(0.05), hidden=[50] * 20)),
        *("vanishing", "hidden."),
    ),
    "8 sigmoid convolutions": (
        partial(judged, partial(conv, widths=(8,) * 8, norm=NoNorm, activation=nn.Sigmoid), steps=60),
        *("vanishing", "stack."),
    ),
    **{
        f"saturated tanh, weights times {by}": (
            partial(judged, tanhs, plant=partial(scale, by=by)),
            "saturated",
            "hidden.0.activation",
        )
        for by in (5, 10, 30)
    },
    "saturated tanh, std 1": (partial(judged, partial(tanhs, init=Normal(1.0))), "saturated", "hidden.0.activation"),
    "saturated sigmoids": (partial(judged, sigmoids, plant=partial(scale, by=30)), "saturated", "hidden.0.activation"),
    "saturated convolutions": (
        partial(judged, partial(conv, norm=NoNorm, activation=nn.Tanh), plant=partial(scale, by=20)),
        *("saturated", "stack.0.activation"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("fault", MORE_PLANTED)
def test_planted_faults_in_other_networks_are_named(fault: str, seed: int) -> None:
    run, rule, layer = MORE_PLANTED[fault]
    found = run(seed=seed)
    assert [one.rule for one in found if one.rule != "non_finite"] == [rule]
    assert layer in found[0].layer
    if rule == "exploding":
        assert ("Initialize" if fault.startswith("init") else "Lower the learning rate from") in found[0].remedy


class Dropping(nn.Module):
    """torch's own layers, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        widths = [64, 100, 100]
        layers = [(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.5)) for a, b in pairwise(widths)]
        self.net = nn.Sequential(nn.Flatten(), *(one for many in layers for one in many), nn.Linear(100, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def zero_gamma(task: Classifier) -> None:
    for name, module in task.named_modules():
        if name.endswith("second.norm"):
            nn.init.zeros_(module.weight)  # type: ignore[arg-type]


resnet = partial(ResNet, (1, 8, 8), 10, depth=8, width=8)
nesterov = partial(SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
MORE_HEALTHY: dict[str, Callable[..., list[Verdict]]] = {
    "sigmoids with BatchNorm, as in configs": partial(
        judged, partial(mlp, activation=nn.Sigmoid, init=Normal(0.1)), partial(SGD, lr=0.1), steps=700, every=30
    ),
    "LayerNorm, AdamW, cosine": partial(
        judged, partial(mlp, norm=LayerNorm), partial(AdamW, lr=3e-3), lr_scheduler=WarmupCosine, steps=300
    ),
    "GroupNorm, GELU, Adam": partial(
        judged, partial(conv, norm=groups, activation=nn.GELU), partial(Adam, lr=3e-3), steps=200
    ),
    "NoNorm, batches of 16": partial(judged, partial(mlp, norm=NoNorm), partial(SGD, lr=0.02), batch=16, steps=300),
    "NoNorm, tanh, long": partial(judged, tanhs, partial(SGD, lr=0.1, momentum=0.9), steps=1000, every=50),
    "NoNorm, eight layers": partial(
        judged, partial(mlp, norm=NoNorm, hidden=[100] * 8), partial(SGD, lr=0.03), steps=400
    ),
    "NoNorm, convolutions, Adam": partial(
        judged, partial(conv, norm=NoNorm), partial(Adam, lr=1e-3), batch=16, steps=200
    ),
    "BatchNorm, loss near zero": partial(judged, mlp, partial(SGD, lr=0.2, momentum=0.9), steps=1000, every=50),
    "BatchNorm, momentum 0.01": partial(
        judged, partial(mlp, norm=partial(BatchNorm, momentum=0.01)), partial(SGD, lr=0.1), steps=600
    ),
    "BatchNorm, momentum 0.01, sigmoids": partial(
        judged,
        partial(mlp, norm=partial(BatchNorm, momentum=0.01), activation=nn.Sigmoid, init=Normal(0.1)),
        partial(SGD, lr=0.1),
        steps=600,
    ),
    "BatchNorm, strong decay": partial(
        judged, mlp, partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-2), steps=600, every=30
    ),
    "BatchNorm, ten layers": partial(judged, partial(mlp, hidden=[64] * 10), partial(SGD, lr=0.1), steps=300),
    "RMSNorm, SiLU": partial(
        judged, partial(mlp, norm=RMSNorm, activation=nn.SiLU), partial(AdamW, lr=1e-3), steps=300
    ),
    "dropout": partial(judged, Dropping, partial(SGD, lr=0.1, momentum=0.9), steps=500, every=25),
    "ResNet-8, cosine": partial(judged, resnet, nesterov, lr_scheduler=WarmupCosine, steps=200),
    "ResNet-8, zero gamma": partial(judged, resnet, nesterov, plant=zero_gamma, every=10, steps=150),
    "every step": partial(judged, mlp, nesterov, every=1, steps=60),
    "a wide rate of Adam": partial(judged, partial(mlp, hidden=[512, 512]), partial(Adam, lr=1e-2), every=10),
    "Xavier tanh": partial(judged, partial(tanhs, init=Xavier(5 / 3), hidden=[100] * 8), steps=400),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", MORE_HEALTHY)
def test_healthy_runs_are_silent(case: str, seed: int) -> None:
    assert MORE_HEALTHY[case](seed=seed) == []


# The callback.


def faulty(rate: float = 0.05) -> Classifier:
    """A network with two faults: dead units, and a frozen head."""
    task = classifier(MLP((1, 8, 8), 10, hidden=(12, 10)), lr=rate)
    kill(task, 0)
    return task


def suite(every: int = 3) -> list[Monitor]:
    return [GradientFlow(every), ActivationPercentiles(every), RunningStatistics(every), CovariateShift(every)]


def file_of(folder: Path) -> Any:
    return json.loads((folder / "run" / "verdicts.json").read_text())


def test_a_verdict_is_printed_once_and_written_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = fit(faulty(), suite(), tmp_path)
    [verdicts] = [one for one in trainer.callbacks if isinstance(one, Verdicts)]  # type: ignore[attr-defined]
    [found] = verdicts.found
    assert (found.rule, found.layer, found.step) == ("dead", "net.hidden.0.activation", 0)
    first, summary = capsys.readouterr().out.split("verdicts: ")
    assert first == f"dead: {found.text}\n  {found.remedy}\n"
    assert summary == f"1 fault found\n  dead: {found.text}\n    {found.remedy}\n"
    assert verdicts.summary() == f"verdicts: {summary}".strip()
    assert file_of(tmp_path) == [vars(found)]
    events = written(tmp_path)
    for tag, plugin in (("normalization/verdicts", "normalization"), ("verdicts", "text")):
        [event] = events.events.Tensors(tag)
        [text] = event.tensor_proto.string_val
        assert event.step == 0
        assert events.events.SummaryMetadata(tag).plugin_data.plugin_name == plugin
        if plugin == "text":
            assert found.text in text.decode()
        else:
            assert json.loads(text) == [vars(found)]


def test_a_healthy_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(classifier(), suite(), tmp_path)
    assert capsys.readouterr().out == "verdicts: no fault found up to step 9\n"
    assert file_of(tmp_path) == []
    assert "verdicts" not in written(tmp_path).tags["tensors"]


def test_one_of_ones_own_takes_the_place_of_the_usual(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Verdicts(tmp_path / "here", dead=0.999999, summary=False, vanishing=1e-9)
    trainer = fit(faulty(), [*suite(), own], tmp_path)
    assert [one for one in trainer.callbacks if isinstance(one, Verdicts)] == [own]  # type: ignore[attr-defined]
    assert json.loads((tmp_path / "here" / "verdicts.json").read_text()) == [vars(one) for one in own.found]
    assert not (tmp_path / "run" / "verdicts.json").exists()
    assert "fault" not in capsys.readouterr().out


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="no logger"):
        fit(faulty(), suite())
    assert list(tmp_path.rglob("verdicts.json")) == []


@pytest.mark.parametrize(
    "name,value",
    [("vanishing", 0.0), ("vanishing", 1), ("dead", -0.1), ("update", 0), ("shift", math.nan), ("growth", True)],
)
def test_thresholds_are_checked(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"Verdicts\({name}={value!r}\).*default is"):
        Verdicts(**{name: value})  # type: ignore[arg-type]


def test_a_stop_by_finite_loss_is_a_verdict(tmp_path: Path) -> None:
    class Breaks(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, *unused: Any) -> None:
            if trainer.global_step == 5:
                module.net.get_submodule("hidden.1.layer").weight.data[0, 0] = torch.inf

    with pytest.raises(InputError):
        fit(classifier(), [*suite(), FiniteLoss(folder=tmp_path / "bad"), Breaks()], tmp_path)
    [found] = file_of(tmp_path)
    assert (found["rule"], found["layer"], found["step"]) == ("non_finite", "net.hidden.1.layer", 5)
    assert found["value"] == math.inf


class Ends(pl.Callback):
    """Ends a run in one of the ways in which runs end."""

    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_batch_end(self, trainer: pl.Trainer, *unused: Any) -> None:
        if trainer.global_step == 7 and self.how == "exception":
            raise ZeroDivisionError("on purpose")
        if trainer.global_step == 7:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("how,raised", [("exception", ZeroDivisionError), ("SIGTERM", SIGTERMException)])
def test_a_run_that_is_stopped_has_its_verdicts(
    how: str, raised: type[BaseException], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(raised):
        fit(faulty(), [*suite(), Ends(how)], tmp_path)
    assert [one["rule"] for one in file_of(tmp_path)] == ["dead"]
    assert "verdicts: 1 fault found" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("at", [2, 4, 7])
def test_a_resumed_run_ends_with_the_same_verdicts(at: int, tmp_path: Path) -> None:
    fit(faulty(), suite(), tmp_path / "whole")
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=at, save_top_k=-1, filename="{step}")
    fit(faulty(), [*suite(), saver], tmp_path / "half", max_steps=at, enable_checkpointing=True)
    checkpoint = tmp_path / f"step={at}.ckpt"
    torch.load(checkpoint, weights_only=True)
    resumed = {"ckpt_path": str(checkpoint), "weights_only": True}
    fit(faulty(), suite(), tmp_path / "resumed", resumed=resumed)
    assert file_of(tmp_path / "resumed") == file_of(tmp_path / "whole") != []


def test_a_test_adds_its_verdict(tmp_path: Path) -> None:
    task, data = classifier(), Digits(batch_size=32, shuffle_seed=0)
    trainer = fit(task, [*suite(), Brighter(2.0, validation=False)], tmp_path, data, limit_val_batches=1.0)
    assert file_of(tmp_path) == []
    trainer.test(task, data, verbose=False)
    [found] = file_of(tmp_path)
    assert (found["rule"], found["layer"]) == ("shift", "net.hidden.0.layer")
    assert "test data" in found["text"]


def test_a_validation_alone_judges_nothing(tmp_path: Path) -> None:
    task, own = classifier(), Verdicts(tmp_path)
    trainer = pl.Trainer(callbacks=[*suite(), own], logger=False, **QUIET)  # type: ignore[arg-type]
    trainer.validate(task, Digits(), verbose=False)
    assert own.found == []
    assert list(tmp_path.iterdir()) == []


def test_a_second_fit_forgets_the_first(tmp_path: Path) -> None:
    own = Verdicts(summary=False)
    fit(faulty(), [*suite(), own], tmp_path / "first")
    fit(classifier(), [*suite(), own], tmp_path / "second")
    assert own.found == []


# What the monitors measure for it.


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_turn_is_the_update_across_the_weights(decay: float, tmp_path: Path) -> None:
    task = classifier(MLP((1, 8, 8), 10, hidden=(12,), norm=NoNorm))
    task.build_optimizer = partial(SGD, lr=0.1, weight_decay=decay)
    layer = task.net.get_submodule("hidden.0.layer")
    before = {name: p.detach().double().clone() for name, p in layer.named_parameters()}
    monitor = GradientFlow(1)
    fit(task, [monitor], tmp_path, max_steps=1)
    across = size = torch.zeros((), dtype=torch.float64)
    for name, p in layer.named_parameters():
        w, moved = before[name].flatten(), (p.detach().double() - before[name]).flatten()
        along = (moved @ w) / (w @ w) * w if w.any() else 0 * w
        across, size = across + (moved - along).square().sum(), size + w.square().sum()
    assert monitor.latest["turn"]["net.hidden.0.layer"] == pytest.approx((across / size).sqrt().item(), rel=1e-4)


def test_weight_decay_alone_turns_nothing(tmp_path: Path) -> None:
    task = classifier(MLP((1, 8, 8), 10, hidden=(12,), norm=NoNorm))
    task.build_optimizer = partial(SGD, lr=0.1, weight_decay=0.1)
    task.net.get_submodule("hidden.0.layer").weight.register_hook(torch.zeros_like)  # type: ignore[operator, union-attr]
    task.net.get_submodule("hidden.0.layer").bias.requires_grad_(False)  # type: ignore[union-attr]
    monitor = GradientFlow(1)
    fit(task, [monitor], tmp_path, max_steps=3)
    assert monitor.latest["update_ratio"]["net.hidden.0.layer"] == pytest.approx(0.01, rel=1e-3)
    assert monitor.latest["turn"]["net.hidden.0.layer"] < 1e-7


def test_the_lag_is_free_of_noise(tmp_path: Path) -> None:
    """Of batches from one distribution it is about 0; where all batches are one, it is the symmetric divergence."""
    from normzoo.callbacks.running_statistics import Sample as Read
    from normzoo.callbacks.running_statistics import differences, lag
    from normzoo.metrics import kl, moments

    g = torch.Generator().manual_seed(0)
    running = moments(2 * torch.randn(100_000, 200, generator=g) + 1)
    draws = [moments(2 * torch.randn(16, 200, generator=g) + 1) for _ in range(2)]
    now, before = (differences(Read({"n": one}, {"n": running}, {}))["n"] for one in draws)
    assert abs(lag(now, before)) < 0.01
    other = moments(torch.randn(16, 200, generator=g))
    [same] = differences(Read({"n": other}, {"n": running}, {})).values()
    batch = other.unbiased()
    expected = ((kl(batch, running) + kl(running, batch)) / 2).median().item()
    assert lag(same, same) == pytest.approx(expected, rel=1e-6)
    assert math.isnan(lag(torch.full((2, 3), math.nan), torch.full((2, 3), math.nan)))


def test_the_docs_have_the_rules_and_their_thresholds() -> None:
    page = (Path(__file__).parents[2] / "docs" / "verdicts.md").read_text()
    for rule in RULES:
        hides = ", ".join(f"`{name}`" for name in rule.hides) or "-"
        assert f"| `{rule.name}` | {rule.measures} | {rule.holds.format(**vars(T))} | {hides} |" in page
        assert f"- `{rule.name}`: " in page
    for name, value in vars(T).items():
        assert f"| `{name}` {value:g}".replace("e-06", "e-6") in page, name
