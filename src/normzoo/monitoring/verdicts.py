"""What is wrong with a training, in words: rules over the tables of monitors, each with a threshold."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, takewhile
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
    growth: float = 20.0
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
        outputs: the nonlinearities behind the last layer with weights: a classifier may be sure of itself.
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
    outputs: Collection[str] = ()
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

    def floors(self, metric: str) -> Iterator[tuple[int, Values]]:
        """The noise floors of a distance: step and values, newest first."""
        for samples in self.of("CovariateShift", metric):
            yield from reversed(samples)

    def began(self, monitor: str, step: int) -> bool:
        """Whether a step is one of the first two samples: what is found there was so at the start."""
        return any(step in steps for table, steps in self.starts.items() if table.split("-")[0] == monitor)


# Words.


def more(count: int) -> str:
    """How many layers there are besides the one that is named."""
    return f", and in {count} more layer{'s' if count > 1 else ''}" if count > 0 else ""


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.3g} %"


CLIP = "clip gradients (Trainer(gradient_clip_val=1))"
NORM = "normalize activations (normzoo fit: --model.net.norm=BatchNorm)"

# Rules: a verdict where one holds, named by the layer that is closest to the cause.


def non_finite(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:
    """NaN or infinity in what is finite in health."""
    found = evidence.bad_step or non_finite_value(evidence)
    if found is None:
        return None
    step, layer, what = found
    remedy = (
        f"Lower the learning rate or {CLIP}; look for a division by 0 or the logarithm of 0 in the loss. FiniteLoss "
        f"stops before such a step reaches the weights."
    )
    return Verdict("non_finite", layer, step, math.inf, math.inf, f"Step {step} is not finite: {what}", remedy)


def non_finite_value(evidence: Evidence) -> tuple[int, str, str] | None:
    """The step, the first layer with a value that is not finite, and a sentence about it."""
    count = 2 if evidence.scales_loss else 1  # a scaled loss may overflow once
    for monitor, metric, what in FINITE:
        for samples in evidence.of(monitor, metric):
            broken = [[name for name, value in v.items() if not math.isfinite(value)] for _, v in samples[-count:]]
            if len(broken) == count and all(broken):
                layer = broken[-1][0]
                return samples[-1][0], layer, f"{what} {layer} is NaN or infinite{more(len(broken[-1]) - 1)}."
    return None


def exploding(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:
    """Activations or gradients that grow by orders of magnitude over the layers; an update larger than the weights."""
    return (
        exploding_activations(evidence, thresholds.growth)
        or exploding_gradient(evidence, thresholds.exploding)
        or exploding_update(evidence, thresholds.update)  # large weights make updates large, too
    )


def exploding_update(evidence: Evidence, threshold: float) -> Verdict | None:
    """An update larger than the weights. Two layers have one: not a head alone that starts near 0."""
    for samples in evidence.of("GradientFlow", "update_ratio"):
        step, ratios = samples[-1]
        layer, *others = sorted(ratios, key=lambda name: -ratios[name])
        value = ratios[layer]
        if value > threshold and all(ratios[second] > threshold / 3 for second in others[:1]):
            above = sum(ratio > threshold for ratio in ratios.values())
            text = (
                f"The learning rate is too large: at step {step} the update of {layer} is {value:.3g} times its "
                f"weights, above {threshold:g}{more(above - 1)}."
            )
            rate = evidence.rate or 0.0
            lower = f" from {rate:.3g} to {0.1 * rate * threshold / value:.1g}" if rate else ""
            remedy = f"Lower the learning rate{lower} (normzoo fit: --model.optimizer.lr), or warm it up."
            return Verdict("exploding", layer, step, value, threshold, text, remedy)
    return None


def exploding_activations(evidence: Evidence, threshold: float) -> Verdict | None:
    """Inputs of layers with weights that spread from layer to layer."""
    weighted = {name for samples in evidence.of("GradientFlow", "flow_norm") for name in samples[-1][1]}
    for samples in evidence.of("CovariateShift", "std"):
        step, spreads = samples[-1]
        known = {name: spread for name, spread in spreads.items() if name in weighted and 0 < spread < math.inf}
        first = max(next(iter(known.values()), 1.0), 1.0)  # inputs of the network may be small
        above = [name for name, spread in known.items() if spread > threshold * first]
        if above:
            layer, value = above[0], known[above[0]] / first
            text = (
                f"Activations explode: at step {step} the inputs of {layer} have a standard deviation of "
                f"{known[layer]:.3g}, {value:.3g} times the first layer's{' or 1' if first == 1 else ''}, above "
                f"{threshold:g}{more(len(above) - 1)}."
            )
            return Verdict("exploding", layer, step, value, threshold, text, remedy_of_growth(evidence, step))
    return None


def exploding_gradient(evidence: Evidence, threshold: float) -> Verdict | None:
    """A gradient that grows on its way back, named where it first does."""
    for samples in evidence.of("GradientFlow", "flow_norm"):
        step, flow = samples[-1]
        last = list(flow.values())[-1]
        above = [name for name, size in flow.items() if last and threshold * last < size < math.inf]
        if above:
            layer, value = above[-1], flow[above[-1]] / last
            text = (
                f"The gradient explodes at {layer}: at step {step} it is {value:.3g} times the last layer's, above "
                f"{threshold:g}{more(len(above) - 1)}."
            )
            return Verdict("exploding", layer, step, value, threshold, text, remedy_of_growth(evidence, step))
    return None


def remedy_of_growth(evidence: Evidence, step: int) -> str:
    """Against growth over the layers: that of the start comes from the weights, a later one from the updates."""
    if not evidence.began("GradientFlow", step):
        return f"Lower the learning rate, or {CLIP}."
    smaller = "Initialize with smaller weights, such as Kaiming's (normzoo fit: --model.net.init=Kaiming)"
    return f"{smaller}, or add skip connections." if evidence.has_norms else f"{smaller}, or {NORM}."


def dead(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:
    """Units that no sample of the probe batch activates; not those that die after the gradient has vanished."""
    found = flat_layer(evidence, "dead", thresholds.dead, lambda name: name not in evidence.two_sided)
    if found is None or vanished_before(evidence, found[0], thresholds):
        return None
    layer, step, value, others = found
    text = (
        f"Units are dead: at step {step} no sample activates {percent(value)} of {layer}, above "
        f"{percent(thresholds.dead)}{others}; no gradient passes them."
    )
    remedy = (
        "Initialize the layer before it anew: its bias may be far below 0, or its weights too large. LeakyReLU has no "
        "dead units."
        if evidence.began("ActivationPercentiles", step)
        else f"Lower the learning rate, whose updates pushed them there, or {NORM}. LeakyReLU has no dead units."
    )
    return Verdict("dead", layer, step, value, thresholds.dead, text, remedy)


def vanished_before(evidence: Evidence, layer: str, thresholds: Thresholds) -> bool:
    """Whether the gradient had vanished when the units of a layer still lived."""
    shares = [one for samples in evidence.of("ActivationPercentiles", "dead") for one in samples if layer in one[1]]
    lived = [step for step, share in shares if share[layer] <= thresholds.dead]
    flows = [one for samples in evidence.of("GradientFlow", "flow_norm") for one in samples]
    return any(step <= lived[-1] and layers_below(f, thresholds.vanishing) for step, f in flows) if lived else False


def saturated(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:
    """Inputs of two-sided nonlinearities where these are flat."""
    found = flat_layer(evidence, "saturated", thresholds.saturated, lambda name: name in evidence.two_sided)
    if found is None:
        return None
    layer, step, value, others = found
    text = (
        f"A nonlinearity is saturated: at step {step} {percent(value)} of the inputs of {layer} lie where it is flat, "
        f"above {percent(thresholds.saturated)}{others}; little gradient passes."
    )
    begun = evidence.began("ActivationPercentiles", step)
    smaller = "Initialize with smaller weights, such as Xavier's (normzoo fit: --model.net.init=Xavier)"
    remedy = smaller if begun else "Lower the learning rate"
    remedy += "." if evidence.has_norms else f", or {NORM}."
    return Verdict("saturated", layer, step, value, thresholds.saturated, text, remedy)


def flat_layer(
    evidence: Evidence, metric: str, threshold: float, counts: Callable[[str], bool]
) -> tuple[str, int, float, str] | None:
    """The first layer whose share is above a threshold: layer, step, share, how many more."""
    for samples in evidence.of("ActivationPercentiles", metric):
        step, now = samples[-1]
        inner = [name for name in now if counts(name) and name not in evidence.outputs]
        above = [name for name in inner if now[name] > threshold]
        if above:
            return above[0], step, now[above[0]], more(len(above) - 1)
    return None


def vanishing(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:
    """A gradient that does not reach the first layers, in two samples in a row, named where it vanishes.

    Where activations are sampled too, it waits for a sample of them, which may show the cause.
    """
    activations = max((s[-1][0] for s in evidence.of("ActivationPercentiles", "input_width")), default=math.inf)
    for samples in evidence.of("GradientFlow", "flow_norm"):
        unreached = [layers_below(flow, thresholds.vanishing) for _, flow in samples[-2:]]
        if len(unreached) == 2 and all(unreached) and activations >= samples[-2][0]:
            (step, flow), names = samples[-1], unreached[-1]
            first, layer, last = flow[names[0]], names[-1], list(flow.values())[-1]
            text = (
                f"The gradient vanishes at {layer}: at step {step} it is {flow[layer] / last:.2g} of the last layer's, "
                f"below {thresholds.vanishing:g}, and {first / last:.2g} at the first layer, {names[0]}."
            )
            cures = [
                *([] if evidence.has_norms else [NORM]),
                *(["use ReLU instead of Sigmoid or Tanh"] if evidence.two_sided else []),
                "initialize the weights by Kaiming (normzoo fit: --model.net.init=Kaiming)",
            ]
            remedy = f"{cures[0][0].upper()}{', '.join(cures)[1:]}, or add skip connections."
            return Verdict("vanishing", layer, step, flow[layer] / last, thresholds.vanishing, text, remedy)
    return None


def layers_below(flow: Values, share: float) -> list[str]:
    """The layers, from the first on, that no more than a share of the last layer's gradient reaches.

    A branch within the network may get less: then the layers before it get theirs by another way.
    """
    last = list(flow.values())[-1]
    small = takewhile(lambda item: item[1] < share * last, flow.items()) if 0 < last < math.inf else ()
    return [name for name, _ in small]


def running_lag(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:
    """Running statistics that do not describe the batches, and will not when the run ends."""
    for samples in evidence.of("RunningStatistics", "running_lag"):
        lags = {name: [(step, v[name]) for step, v in samples if name in v] for name in samples[-1][1]}
        behind = [name for name, lag in lags.items() if lags_behind(evidence, name, lag, thresholds.running_lag)]
        if behind:
            layer = max(behind, key=lambda name: lags[name][-1][1])
            step, value = lags[layer][-1]
            text = (
                f"Running statistics lag: at step {step} those of {layer} lie {value:.2g} nats per channel from the "
                f"batches, above {thresholds.running_lag:g}{more(len(behind) - 1)}; evaluation will differ."
            )
            remedy = remedy_of_lag(evidence, layer)
            return Verdict("running_lag", layer, step, value, thresholds.running_lag, text, remedy)
    return None


def lags_behind(evidence: Evidence, layer: str, lag: Sequence[tuple[int, float]], threshold: float) -> bool:
    """Whether a lag is above a threshold in three samples in a row after the warm-up, and will be as the run ends.

    Running statistics forget their start in about 5 / momentum steps; nobody waits for longer than half of the run, nor
    for less than the 50 steps of the usual momentum, 0.1. What comes is taken to change at the rate of the samples
    known.
    """
    momentum, steps = evidence.momentum.get(layer), evidence.steps or 2 * LONG
    (begin, first), (step, last) = lag[0], lag[-1]
    if len(lag) < 3 or step < max(min(5 / momentum if momentum else math.inf, steps / 2), 5 / USUAL_MOMENTUM):
        return False
    left = evidence.steps - step if evidence.steps else LONG
    shrinks = min(last / first, 1.0) if first > 0 else 1.0
    return min(value for _, value in lag[-3:]) > threshold < last * shrinks ** (left / (step - begin))


def remedy_of_lag(evidence: Evidence, layer: str) -> str:
    """Against statistics that are late."""
    momentum = evidence.momentum.get(layer)
    if momentum and momentum < USUAL_MOMENTUM and 5 / momentum > (evidence.steps or LONG) / 4:
        return (
            f"Raise the norm's momentum from {momentum:g} to {USUAL_MOMENTUM:g}: it needs about 5 / momentum = "
            f"{5 / momentum:,.0f} steps to forget how it started."
        )
    return "Let the learning rate fall towards the end of the run, or raise the norm's momentum."


def shift(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:
    """Validation or test data of another distribution, in two neighbouring layers: not one rare feature of one."""
    for metric, data in (("val_w2", "validation"), ("test_w2", "test")):
        for samples in evidence.of("CovariateShift", metric):
            step, distances = samples[-1]
            floors = next((v for t, v in evidence.floors(f"{metric}_floor") if t == step), {})
            bounds = {name: max(thresholds.shift, 3 * floors[name]) for name in distances if name in floors}
            above = [distances[name] > bound for name, bound in bounds.items()]
            pairs = zip(bounds, above, above[1:] or above, strict=False)
            held = [name for name, one, next_one in pairs if one and next_one]
            if held:
                layer, value = held[0], distances[held[0]]
                text = (
                    f"The {data} data differ from the training data: at step {step} the inputs of {layer} lie "
                    f"{value:.2g} standard deviations apart at equal weights, above {bounds[layer]:.2g}"
                    f"{more(sum(above) - 1)}."
                )
                remedy = (
                    f"Prepare the {data} data as the training data, with the same scale, mean and standard deviation, "
                    f"and check that both come from one source."
                )
                return Verdict("shift", layer, step, value, bounds[layer], text, remedy)
    return None


def not_learning(evidence: Evidence, thresholds: Thresholds) -> Verdict | None:
    """Layers that do not turn in any of at least three samples, and do not begin to, while others do."""
    bound = thresholds.not_learning
    for samples in evidence.of("GradientFlow", "turn"):
        step, turns = samples[-1]
        still = [name for name in turns if len(samples) > 2 and all(is_still(v, name, bound) for _, v in samples)]
        still = [name for name in still if not begins([v[name] for _, v in samples])]
        if still:
            layer, others = still[0], more(len(still) - 1)
            if layer in evidence.frozen:
                text = (
                    f"{layer} is frozen (requires_grad=False): at step {step} its turn is 0, below {bound:g}{others}. "
                    f"If this is meant, all is well."
                )
                remedy = f"If it is not meant, call requires_grad_(True) of {layer} before the optimizer is built."
            else:
                text = (
                    f"{layer} does not learn: at step {step} its update without weight decay is {turns[layer]:.2g} of "
                    f"its weights, below {bound:g}{others}, while other layers move."
                )
                remedy = (
                    f"Check that the optimizer has the parameters of {layer}, at a rate above 0, and that the loss "
                    f"depends on them, without detach() or torch.no_grad()."
                )
            return Verdict("not_learning", layer, step, turns[layer], bound, text, remedy)
    return None


def is_still(turns: Values, layer: str, bound: float) -> bool:
    """Whether a layer does not turn, while those that do turn a thousand times as far, in the median."""
    others = [turn for turn in turns.values() if turn > bound]
    return bool(others) and turns.get(layer, math.inf) < min(bound, median(others) / 1000)


def begins(turns: Sequence[float]) -> bool:
    """Whether a layer turns ever farther: those of a block whose last norm starts at 0 wait until that has moved."""
    return turns[-1] > 10 * turns[0] and all(before < after for before, after in pairwise(turns))


FINITE = (
    ("CovariateShift", "std", "the input of"),
    ("CovariateShift", "mean", "the input of"),
    ("GradientFlow", "flow_norm", "the gradient of the output of"),
    ("GradientFlow", "grad_norm", "the gradient of the weights of"),
    ("LossLandscape", "loss", "the loss of the"),
)
"""What is finite in health: monitor, metric, words. Divergences of constant channels are not, nor ratios of 0 to 0."""
USUAL_MOMENTUM = 0.1
LONG = 2000
"""Steps that a run without an end is assumed to have left."""


@dataclass(frozen=True)
class Rule:
    """A rule.

    Args:
        name: of its verdicts.
        find: returns a verdict if it holds.
        hides: the rules whose findings are consequences of this one.
        measures: what is measured, of which table.
        holds: when it holds, with {NAME:g} for a threshold.
    """

    name: str
    find: Callable[[Evidence, Thresholds], Verdict | None]
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
        "an update above {update:g} of the weights, and above a third of that in a second layer; or a `flow_norm` "
        "above {exploding:g} of the last layer's; or a `std` above {growth:g} times the first layer's, or 1 if that is "
        "less",
    ),
    Rule(
        "dead",
        dead,
        (*FLOW, "shift"),
        "`dead` of nonlinearities that are flat on one side, such as ReLU and GELU (ActivationPercentiles)",
        "above {dead:g}",
    ),
    Rule(
        "saturated",
        saturated,
        FLOW,
        "`saturated` of nonlinearities that are flat on both sides, such as Sigmoid and Tanh (ActivationPercentiles)",
        "above {saturated:g}",
    ),
    Rule(
        "vanishing",
        vanishing,
        ("not_learning", "dead", "saturated"),
        "`flow_norm` (GradientFlow)",
        "below {vanishing:g} of the last layer's in two samples in a row, in this layer and in all before it",
    ),
    Rule(
        "running_lag",
        running_lag,
        (),
        "`running_lag` (RunningStatistics)",
        "above {running_lag:g} nats per channel in three samples in a row, after 5 / momentum steps or half of the "
        "run, at least 50, if it will be so at the end of the run",
    ),
    Rule(
        "shift",
        shift,
        (),
        "`val_w2` and `test_w2` (CovariateShift)",
        "above {shift:g} standard deviations and 3 times the noise floor, in two neighbouring layers",
    ),
    Rule(
        "not_learning",
        not_learning,
        (),
        "`turn` (GradientFlow)",
        "below {not_learning:g}, and below a thousandth of the median over the layers that move, in at least three "
        "samples in a row that do not rise tenfold",
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
        if rule.name in past | hidden:
            continue
        if (verdict := rule.find(evidence, thresholds)) is not None:
            follows = rule.name == "non_finite" and "exploding" in past
            found.append(replace(verdict, remedy="It follows from what explodes: see there.") if follows else verdict)
    return found
