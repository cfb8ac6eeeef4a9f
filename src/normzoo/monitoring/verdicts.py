"""What is wrong with a training, in words: rules over the tables of monitors, each with a threshold."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from statistics import median
from typing import NamedTuple

Values = Mapping[str, float]
"""Layer -> value, in the order of execution, where there is one."""


@dataclass(frozen=True)
class Verdict:
    """One finding.

    Args:
        rule: the name of the rule.
        layer: the layer that it names.
        step: the sample in which it first holds.
        value: what was measured.
        threshold: the bound of the rule.
        text: a sentence with layer, step, value and threshold.
        remedy: a sentence.
    """

    rule: str
    layer: str
    step: int
    value: float
    threshold: float
    text: str
    remedy: str


@dataclass(frozen=True)
class Thresholds:
    """The bounds of the rules; `RULES` says what each bounds, and docs/verdicts.md why it has this value."""

    update: float = 1.0
    exploding: float = 1e3
    growth: float = 100.0
    dead: float = 0.8
    saturated: float = 0.75
    vanishing: float = 1e-3
    running_lag: float = 0.06
    shift: float = 0.5
    not_learning: float = 1e-6


class Sample(NamedTuple):
    """The table that a monitor wrote at a step: metric -> layer -> value."""

    step: int
    values: Mapping[str, Values]


@dataclass(frozen=True)
class Evidence:
    """What the rules judge.

    Args:
        samples: table -> its last samples, the newest at the end.
        starts: table -> the steps of its first two samples in the run.
        two_sided: the nonlinearities that are flat on both sides, such as Sigmoid and Tanh.
        frozen: the layers none of whose parameters is trained.
        momentum: norm -> the weight of a batch in its running statistics.
        has_norms: whether the network normalizes its activations.
        rate: the learning rate.
        steps: of the run; None if it has no end.
        scales_loss: whether gradients may overflow now and then, as in mixed precision with a scaled loss.
        bad_step: of a step that was not finite, its number, the first layer that is not, and a sentence about it.
    """

    samples: Mapping[str, Sequence[Sample]]
    starts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    two_sided: Collection[str] = ()
    frozen: Collection[str] = ()
    momentum: Mapping[str, float | None] = field(default_factory=dict)
    has_norms: bool = False
    rate: float | None = None
    steps: float | None = None
    scales_loss: bool = False
    bad_step: tuple[int, str, str] | None = None

    def of(self, monitor: str, metric: str) -> Iterator[list[tuple[int, Values]]]:
        """The samples of a metric, step and values, for each monitor of a class."""
        for table, samples in self.samples.items():
            found = [(step, values[metric]) for step, values in samples if values.get(metric)]
            if found and table.split("-")[0] == monitor:
                yield found

    def began(self, monitor: str, step: int) -> bool:
        """Whether a step is one of the first two samples: what is found there was so at the start."""
        return any(step in steps for table, steps in self.starts.items() if table.split("-")[0] == monitor)


# Words.


def further(count: int) -> str:
    """How many layers there are besides."""
    return f", and in {count} more layer{'s' if count > 1 else ''}" if count > 0 else ""


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.3g} %"


# Rules, each a function of the evidence and the thresholds. The first on the way to blame comes first.

Result = Verdict | None


def non_finite(evidence: Evidence, thresholds: Thresholds) -> Result:
    """NaN or infinity in what is finite in health."""
    remedy = (
        "Lower the learning rate, or clip gradients (Trainer(gradient_clip_val=1)), and look for a division by zero"
    )
    remedy += " or a logarithm of 0 in the loss; FiniteLoss stops before such a step reaches the weights."
    if evidence.bad_step is not None:
        step, layer, sentence = evidence.bad_step
        return Verdict("non_finite", layer, step, math.inf, math.inf, f"Step {step} is not finite: {sentence}", remedy)
    kinds = (
        ("CovariateShift", "std", "The input"),
        ("CovariateShift", "mean", "The input"),
        ("GradientFlow", "flow_norm", "The gradient of the output"),
        ("GradientFlow", "grad_norm", "The gradient of the weights"),
        ("LossLandscape", "loss", "The loss"),
    )
    for monitor, metric, what in kinds:
        for samples in evidence.of(monitor, metric):
            held = samples[-2:] if evidence.scales_loss else samples[-1:]
            broken = [[layer for layer, value in values.items() if not math.isfinite(value)] for _, values in held]
            if all(broken) and len(held) == 1 + evidence.scales_loss:
                step, layer = held[-1][0], broken[-1][0]
                of = "" if monitor == "LossLandscape" else f" of {layer}"
                text = f"{what}{of} is NaN or infinite at step {step}{further(len(broken[-1]) - 1)}."
                return Verdict("non_finite", layer, step, math.inf, math.inf, text, remedy)
    return None


def exploding(evidence: Evidence, thresholds: Thresholds) -> Result:
    """An update larger than the weights; gradients or activations that grow by orders of magnitude over the layers."""
    return (
        exploding_update(evidence, thresholds.update)
        or exploding_activations(evidence, thresholds.growth)
        or exploding_gradient(evidence, thresholds.exploding)
    )


def exploding_update(evidence: Evidence, threshold: float) -> Result:
    """An update larger than the weights."""
    for samples in evidence.of("GradientFlow", "update_ratio"):
        step, ratios = samples[-1]
        layer, *others = sorted(ratios, key=lambda name: -ratios[name])
        # Not where one layer alone starts near 0, as some heads do.
        if ratios[layer] > threshold and all(ratios[second] > threshold / 3 for second in others[:1]):
            above = sum(ratio > threshold for ratio in ratios.values())
            text = f"The update of {layer} at step {step} is {ratios[layer]:.3g} times as large as its weights, above "
            text += f"{threshold:g}{further(above - 1)}: the learning rate is too large."
            better = None if evidence.rate is None else evidence.rate * 0.1 * threshold / ratios[layer]
            numbers = f" from {evidence.rate:.3g} to {better:.1g}" if better else ""
            flag = f" (normzoo fit: --model.optimizer.lr={better:.1g})" if better else ""
            return Verdict(
                *("exploding", layer, step, ratios[layer], threshold, text),
                f"Lower the learning rate{numbers}{flag}, or warm it up.",
            )
    return None


def exploding_gradient(evidence: Evidence, threshold: float) -> Result:
    """A gradient that grows on its way back, named where it first does."""
    for samples in evidence.of("GradientFlow", "flow_norm"):
        step, flow = samples[-1]
        last = list(flow.values())[-1]
        above = [layer for layer, size in flow.items() if last and math.isfinite(size) and size > threshold * last]
        if above:
            layer, value = above[-1], flow[above[-1]] / last
            text = f"The gradient explodes at {layer} at step {step}: it is {value:.3g} times that of the last layer, "
            text += f"above {threshold:g}{further(len(above) - 1)}."
            return Verdict("exploding", layer, step, value, threshold, text, remedy_of_growth(evidence, step))
    return None


def exploding_activations(evidence: Evidence, threshold: float) -> Result:
    """Inputs of layers with weights whose spread grows from layer to layer."""
    weighted = {name for samples in evidence.of("GradientFlow", "flow_norm") for name in samples[-1][1]}
    for samples in evidence.of("CovariateShift", "std"):
        step, stds = samples[-1]
        stds = {layer: std for layer, std in stds.items() if layer in weighted}
        start = next(iter(stds.values()), 0.0)
        above = [layer for layer, std in stds.items() if start and math.isfinite(std) and std > threshold * start]
        if above:
            layer, value = above[0], stds[above[0]] / start
            text = f"Activations explode: at step {step} the input of {layer} has {value:.3g} times the standard "
            text += f"deviation of the first layer's, above {threshold:g}{further(len(above) - 1)}."
            return Verdict("exploding", layer, step, value, threshold, text, remedy_of_growth(evidence, step))
    return None


def remedy_of_growth(evidence: Evidence, step: int) -> str:
    """Against what grows over the layers: since the start it is the initialization, later the learning rate."""
    if not evidence.began("GradientFlow", step):
        return "Lower the learning rate, or clip gradients (Trainer(gradient_clip_val=1))."
    if evidence.has_norms:
        return "Initialize with smaller weights, or make the network shallower or residual."
    return (
        "Initialize with smaller weights, such as Kaiming's (normzoo fit: --model.net.init=Kaiming), or normalize "
        "activations (--model.net.norm=BatchNorm)."
    )


def dead(evidence: Evidence, thresholds: Thresholds) -> Result:
    """Units that no sample of the probe batch activates, in two samples in a row."""
    found = flat_layer(evidence, "dead", thresholds.dead, lambda layer: layer not in evidence.two_sided)
    if found is None:
        return None
    layer, step, value, more = found
    text = f"{percent(value)} of the units of {layer} are dead at step {step}, above {percent(thresholds.dead)}{more}: "
    text += "no sample activates them, so that no gradient passes."
    begun = "Check the initialization of the layer before it, above all for a large negative bias, or use LeakyReLU."
    later = "Lower the learning rate, which has pushed them there, normalize activations, or use LeakyReLU."
    remedy = begun if evidence.began("ActivationPercentiles", step) else later
    return Verdict("dead", layer, step, value, thresholds.dead, text, remedy)


def saturated(evidence: Evidence, thresholds: Thresholds) -> Result:
    """Inputs of two-sided nonlinearities where these are flat, in two samples in a row."""
    found = flat_layer(evidence, "saturated", thresholds.saturated, lambda layer: layer in evidence.two_sided)
    if found is None:
        return None
    layer, step, value, more = found
    text = f"{percent(value)} of the inputs of {layer} lie where it is flat at step {step}, above "
    text += f"{percent(thresholds.saturated)}{more}: little gradient passes."
    norm = "" if evidence.has_norms else ", or normalize activations (normzoo fit: --model.net.norm=BatchNorm)"
    begun = f"Initialize with smaller weights, such as Xavier's (normzoo fit: --model.net.init=Xavier){norm}."
    later = f"Lower the learning rate{norm}."
    remedy = begun if evidence.began("ActivationPercentiles", step) else later
    return Verdict("saturated", layer, step, value, thresholds.saturated, text, remedy)


def flat_layer(
    evidence: Evidence, metric: str, threshold: float, counts: Callable[[str], bool]
) -> tuple[str, int, float, str] | None:
    """The first layer whose share is above a threshold in two samples in a row: layer, step, share, how many more."""
    for samples in evidence.of("ActivationPercentiles", metric):
        (_, before), (step, now) = samples[-2:] if len(samples) > 1 else ((0, {}), samples[-1])
        above = [one for one, share in now.items() if counts(one) and min(share, before.get(one, 0.0)) > threshold]
        if above:
            return above[0], step, now[above[0]], further(len(above) - 1)
    return None


def vanishing(evidence: Evidence, thresholds: Thresholds) -> Result:
    """A gradient that does not reach the first layers, in two samples in a row, named where it vanishes."""
    for samples in evidence.of("GradientFlow", "flow_norm"):
        unreached = [layers_below(flow, thresholds.vanishing) for _, flow in samples[-2:]]
        if len(unreached) == 2 and all(unreached):
            step, flow = samples[-1]
            below, last = unreached[-1], list(flow.values())[-1]
            layer, value, first = below[-1], flow[below[-1]] / last, flow[below[0]] / last
            text = (
                f"The gradient vanishes at {layer} at step {step}: it is {value:.2g} of that of the last layer, below "
            )
            text += f"{thresholds.vanishing:g}"
            text += f", and {first:.2g} at the first layer, {below[0]}." if len(below) > 1 else "."
            norm = "" if evidence.has_norms else "Normalize activations (normzoo fit: --model.net.norm=BatchNorm), "
            remedy = f"{norm}use ReLU instead of Sigmoid or Tanh, initialize by Kaiming (--model.net.init=Kaiming), or "
            remedy += "add skip connections."
            return Verdict("vanishing", layer, step, value, thresholds.vanishing, text, remedy[0].upper() + remedy[1:])
    return None


def layers_below(flow: Values, share: float) -> list[str]:
    """The layers that no more than a share of the last layer's gradient reaches, from the first on.

    A branch within the network may get little: then the layers before it get theirs by another way.
    """
    last = list(flow.values())[-1]
    if not last or not math.isfinite(last):
        return []
    return [layer for layer, _ in takewhile(lambda item: item[1] < share * last, flow.items())]


def running_lag(evidence: Evidence, thresholds: Thresholds) -> Result:
    """Running statistics that do not describe the batches, and will not when the run ends."""
    for samples in evidence.of("RunningStatistics", "running_lag"):
        lags = {layer: [(step, v[layer]) for step, v in samples if layer in v] for layer in samples[-1][1]}
        behind = [layer for layer, lag in lags.items() if lags_behind(evidence, layer, lag, thresholds.running_lag)]
        if behind:
            layer = max(behind, key=lambda name: lags[name][-1][1])
            step, value = lags[layer][-1]
            text = (
                f"The running statistics of {layer} do not describe the batches at step {step}: they lie {value:.2g} "
            )
            text += (
                f"nats per channel apart, above {thresholds.running_lag:g}{further(len(behind) - 1)}; in evaluation "
            )
            text += "the network sees other activations."
            remedy = remedy_of_lag(evidence, layer)
            return Verdict("running_lag", layer, step, value, thresholds.running_lag, text, remedy)
    return None


def lags_behind(evidence: Evidence, layer: str, lag: Sequence[tuple[int, float]], threshold: float) -> bool:
    """Whether a lag is above a threshold in three samples in a row, after the warm-up, and still at the end of the run.

    Running statistics forget their start in 5 / momentum steps; half of the run is enough to wait. The lag goes on as
    it did over the samples known.
    """
    (begin, first), (step, last) = lag[0], lag[-1]
    momentum = evidence.momentum.get(layer)
    warm_up = min(5 / momentum if momentum else math.inf, (evidence.steps or 2 * LONG) / 2)
    if len(lag) < 3 or step < warm_up or min(value for _, value in lag[-3:]) <= threshold:
        return False
    left = (evidence.steps or step + LONG) - step
    return last * min(last / first, 1.0) ** (left / (step - begin)) > threshold if first > 0 else True


def remedy_of_lag(evidence: Evidence, layer: str) -> str:
    """Against statistics that are late."""
    momentum = evidence.momentum.get(layer)
    steps = evidence.steps or LONG
    if momentum and 5 / momentum > steps / 4:
        return (
            f"Raise the momentum of the norm from {momentum:g} to 0.1 (normzoo fit: --model.net.norm.momentum=0.1): "
            f"running statistics need about 5 / momentum = {5 / momentum:,.0f} steps."
        )
    return "Lower the learning rate towards the end of the run, or raise the momentum of the norm."


def shift(evidence: Evidence, thresholds: Thresholds) -> Result:
    """Validation or test data whose distribution is another than that of training, at equal weights."""
    for metric, data in (("val_w2", "validation"), ("test_w2", "test")):
        for samples, floors in zip(
            evidence.of("CovariateShift", metric), evidence.of("CovariateShift", f"{metric}_floor"), strict=False
        ):
            (step, distances), (_, floor) = samples[-1], floors[-1]
            bounds = {layer: max(thresholds.shift, 3 * floor[layer]) for layer in distances if layer in floor}
            above = [layer for layer, bound in bounds.items() if distances[layer] > bound]
            if above:
                layer, value = above[0], distances[above[0]]
                text = f"The {data} data differ from the training data at {layer} at step {step}: its inputs lie "
                text += f"{value:.2g} standard deviations apart at equal weights, above {bounds[layer]:.2g}"
                text += f"{further(len(above) - 1)}."
                remedy = (
                    f"Give the {data} data the preprocessing of the training data, such as the same scale, mean and "
                )
                remedy += "standard deviation, and check that both come from one source."
                return Verdict("shift", layer, step, value, bounds[layer], text, remedy)
    return None


def not_learning(evidence: Evidence, thresholds: Thresholds) -> Result:
    """Layers that never turn, while others do."""
    for samples in evidence.of("GradientFlow", "turn"):
        step, turns = samples[-1]
        still = [
            layer for layer in turns if len(samples) > 2 and all(is_still(v, layer, thresholds) for _, v in samples)
        ]
        if still:
            layer = still[0]
            more = further(len(still) - 1)
            if layer in evidence.frozen:
                text = f"{layer} is frozen (requires_grad=False) at step {step}: its turn is 0, below "
                text += f"{thresholds.not_learning:g}{more}. If this is meant, all is well."
                remedy = f"If it is not meant, call requires_grad_(True) of {layer} before the optimizer is built."
            else:
                text = (
                    f"{layer} does not learn: at step {step} its update, without weight decay, is {turns[layer]:.2g} "
                )
                text += f"of its weights, below {thresholds.not_learning:g}{more}, while other layers move."
                remedy = (
                    f"Check that the optimizer has the parameters of {layer}, at a rate above 0, and that the loss "
                )
                remedy += "depends on them: no detach() or torch.no_grad() after the layer."
            return Verdict("not_learning", layer, step, turns[layer], thresholds.not_learning, text, remedy)
    return None


def is_still(turns: Values, layer: str, thresholds: Thresholds) -> bool:
    """Whether a layer does not turn, while the layers that do move a thousand times as far."""
    others = [turn for turn in turns.values() if turn > thresholds.not_learning]
    turn = turns.get(layer, math.inf)
    return bool(others) and turn < min(thresholds.not_learning, 1e-3 * median(others))


LONG = 2000
"""Steps that a run without an end is taken to go on."""


@dataclass(frozen=True)
class Rule:
    """A rule.

    Args:
        name: of its verdicts.
        find: returns a verdict if it holds.
        hides: the rules whose findings are consequences of this one.
        measures: what is measured, of which table.
        holds: when it holds, with {threshold} for the bound of its name.
    """

    name: str
    find: Callable[[Evidence, Thresholds], Result]
    hides: tuple[str, ...]
    measures: str
    holds: str


FLOW = ("vanishing", "not_learning")
RULES = (
    Rule(
        "non_finite",
        non_finite,
        ("exploding", "dead", "saturated", *FLOW, "running_lag", "shift"),
        "`flow_norm`, `grad_norm` (GradientFlow), `mean`, `std` (CovariateShift), `loss` (LossLandscape), and the step "
        "that FiniteLoss found",
        "NaN or infinity; with a scaled loss (16-mixed), in two samples in a row",
    ),
    Rule(
        "exploding",
        exploding,
        ("dead", "saturated", *FLOW, "running_lag", "shift"),
        "`update_ratio`, `flow_norm` (GradientFlow), `std` of the inputs of layers with weights (CovariateShift)",
        "an update above {update} of the weights, and above a third of that in a second layer; or a `flow_norm` above "
        "{exploding} of the last layer's; or a `std` above {growth} of the first layer's",
    ),
    Rule(
        "dead",
        dead,
        FLOW,
        "`dead` of nonlinearities that are flat on one side, such as ReLU and GELU (ActivationPercentiles)",
        "above {dead} in two samples in a row",
    ),
    Rule(
        "saturated",
        saturated,
        FLOW,
        "`saturated` of nonlinearities that are flat on both sides, such as Sigmoid and Tanh (ActivationPercentiles)",
        "above {saturated} in two samples in a row",
    ),
    Rule(
        "vanishing",
        vanishing,
        ("not_learning",),
        "`flow_norm` (GradientFlow)",
        "below {vanishing} of the last layer's in two samples in a row, in this layer and in all before it",
    ),
    Rule(
        "running_lag",
        running_lag,
        (),
        "`running_lag` (RunningStatistics)",
        "above {running_lag} nats per channel in three samples in a row, after 5 / momentum steps or half of the run, "
        "if it will be so at the end of the run",
    ),
    Rule(
        "shift",
        shift,
        (),
        "`val_w2` and `test_w2` (CovariateShift)",
        "above {shift} standard deviations, and above 3 times the noise floor",
    ),
    Rule(
        "not_learning",
        not_learning,
        (),
        "`turn` (GradientFlow)",
        "below {not_learning}, and below a thousandth of the median over the layers that move, in at least three "
        "samples in a row",
    ),
)
"""In the order of causes: a rule hides the findings that its own explains."""


def judge(evidence: Evidence, thresholds: Thresholds, known: Collection[str]) -> list[Verdict]:
    """The verdicts that hold now and were not found before.

    Args:
        evidence: the tables, and facts about the network.
        thresholds: the bounds of the rules.
        known: the rules that have given a verdict: none gives a second one, nor what its findings explain.
    """
    found: list[Verdict] = []
    for rule in RULES:
        past = {*known, *(one.rule for one in found)}
        hidden = {name for one in RULES if one.name in past for name in one.hides}
        if rule.name not in past | hidden and (verdict := rule.find(evidence, thresholds)) is not None:
            found.append(verdict)
    return found
