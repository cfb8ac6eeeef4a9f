"""Running statistics and state dicts: what changes when, and what is saved."""

import copy
import math
import pickle
from itertools import product

import torch

from normzoo.errors import InputError
from normzoo.testing._law import expect, fact, law
from normzoo.testing._subject import (
    Subject,
    assert_close,
    buffers_of,
    close,
    fresh,
    is_stateful,
    let_draw,
    of_layer,
    refusal,
    same_tensors,
)

NAMES = {math.nan: "NaN", math.inf: "inf"}
NEVER_IN_EVALUATION = "Update running statistics only in training: if self.training: ..."


@law(
    observed="what the layer keeps changes when it must not",
    tried="layer.eval()(x)",
    means="Validation changes the model, and what it predicts depends on the batches before.",
    remedy=NEVER_IN_EVALUATION,
)
def buffers_move_in_training_only(subject: Subject) -> None:
    """Running statistics change in training, constants and parameters never, and nothing changes in evaluation."""
    layer, facts = subject.build(), subject.facts
    at_start = {**buffers_of(layer), **{n: p.clone() for n, p in layer.named_parameters()}}
    moving = buffers_of(layer).keys() - set(facts.constants)
    expect(
        bool(moving) == facts.stateful,
        f"facts.stateful is {facts.stateful}, and the buffers that are no constants are {sorted(moving)}",
        "[name for name, _ in layer.named_buffers()]",
        f"facts = Facts(stateful={bool(moving)}); name buffers that never change in constants=(...).",
    )
    of_layer(layer, subject.input())
    trained = buffers_of(layer)
    for name in moving:
        expect(not torch.equal(trained[name], at_start[name]), f"{name} stays as it is in training")
    for name in facts.constants:
        expect(torch.equal(trained[name], at_start[name]), f"{name}, a constant, moves in training")
    of_layer(layer.eval(), subject.input(seed=1))
    for name, now in buffers_of(layer).items():
        moved = (now.double() - trained[name].double()).abs().max().item() if now.numel() else 0
        expect(
            torch.equal(now, trained[name]),
            f"in evaluation, {name} moved by {moved:.2g}",
            f"before = layer.{name}.clone(); layer.eval()(x); layer.{name} - before",
        )
    for name, p in layer.named_parameters():
        expect(
            torch.equal(p, at_start[name]),
            f"a forward pass moves the parameter {name}",
            f"before = layer.{name}.clone(); layer(x); layer.{name} - before",
            f"Compute with a copy: self.{name}.clamp(0, 1). What no optimizer learns is a buffer: "
            f"self.register_buffer({name!r}, ...).",
        )


@law(
    observed="evaluation does not use what training keeps",
    tried="y = layer.eval()(x); [b.mul_(2).add_(1) for b in layer.buffers() if b.is_floating_point()]; layer(x) - y",
    means="Where statistics of the batch are used in evaluation, a prediction depends on what else is in the batch.",
    remedy="if self.training: compute and keep the statistics of x; else: use those that are kept.",
    explained_by=("buffers-move-in-training-only",),
)
def evaluation_uses_statistics(subject: Subject) -> None:
    """Evaluation depends on the buffers that training moves; without any, it is what training is."""
    layer, x = subject.experienced(), subject.input()
    floats = [name for name, b in layer.named_buffers() if b.is_floating_point()]
    moving = [name for name in floats if name not in subject.facts.constants]
    other = copy.deepcopy(layer).eval()
    for name in moving:
        other.get_buffer(name).mul_(2).add_(1)
    y = fresh(layer, x)
    layer.eval()
    if moving:
        expect(not close(layer(x), other(x)), f"evaluation uses none of the buffers {', '.join(moving)}")
    elif floats and not subject.facts.random and not subject.declares:
        expect(
            close(layer(x), y),
            f"evaluation differs from training, and no pass in training moves {', '.join(floats)}",
            "layer(x); [*layer.buffers()]",
            f"Update them in training, in place: self.{floats[0]}.lerp_(mean.detach(), momentum).",
            "Evaluation uses the values that the layer was built with.",
        )


def settles(subject: Subject) -> bool:
    """Whether running statistics come to rest: with positions, whose count is as large for one sample."""
    return is_stateful(subject) and subject.layout != "NC" and not (subject.facts.random or subject.on_weights)


@law(
    where="once",
    when=settles,
    observed="after many passes over the same batch, evaluation computes something else on it than training",
    tried="x = x[:1].expand_as(x); y = [layer(x) for _ in range(200)][-1]; (layer.eval()(x) - y).abs().max()",
    means="The network is evaluated with other statistics than it was trained with.",
    remedy="Keep what training divides by: a variance where evaluation takes its root, with the same eps.",
    explained_by=("buffers-move-in-training-only", "evaluation-uses-statistics"),
)
def evaluation_settles(subject: Subject) -> None:
    """Where all samples and batches are the same, evaluation comes to what training computes."""
    layer, positions = subject.default(), {"NCL": [256], "NCHW": [16, 16]}[subject.layout]
    sample = subject.input(sizes=(1, subject.features, *positions))
    x = torch.cat([sample] * subject.samples(4))  # of so many values that one more or less is not seen
    for _ in range(200):
        before = buffers_of(layer)
        y = layer(x)
    still = all(close(b, layer.get_buffer(n), 1e-5) for n, b in before.items() if b.is_floating_point())
    if still:
        off = (layer.eval()(x) - y).abs().max().item()
        expect(off < 0.01, f"after 200 passes over the same batch, evaluation is off by {off:.2g} on it")


@law(
    observed="in evaluation the same input gives another output",
    tried="layer.eval(); y = layer(x); layer(2 * x); layer(x) - y",
    means="What a network predicts depends on the batches before, or on chance.",
    remedy="What training computes or draws, it keeps in buffers, and only if self.training.",
    explained_by=("buffers-move-in-training-only",),
)
def evaluation_keeps_nothing(subject: Subject) -> None:
    """In evaluation the output of a batch does not depend on the batches before it."""
    layer, x = subject.experienced().eval(), subject.input()
    let_draw(layer)
    y = layer(x)
    layer(2 * subject.input(seed=1))
    assert_close(layer(x), y, "the same input after another batch")


@law(
    when=is_stateful,
    observed="one bad batch stays in the running statistics",
    tried="bad = x.clone(); bad[0, 0] = float('nan'); layer(bad); [*layer.buffers()]",
    means="After one batch with NaN or inf every evaluation is NaN; torch's own BatchNorm has this, too.",
    remedy="Where the new statistics are not finite keep the old ones, by torch.where, which needs no value in Python.",
    binds="zoo",
)
def nan_batch(subject: Subject) -> None:
    """NaN is not hidden in the output, and does not stay: the running statistics are as finite as before."""
    for bad, sizes in product(NAMES, (subject.sizes, subject.many_samples)):
        layer = subject.experienced()
        x = subject.input(seed=4, sizes=sizes)
        x[0, 0] = bad
        expect(not of_layer(layer, x)["output"].isfinite().all(), f"the output hides {NAMES[bad]}")
        expect(all(b.isfinite().all() for b in layer.buffers()), f"{NAMES[bad]} stays in the running statistics")
        before = buffers_of(layer)
        expect(of_layer(layer, subject.input(seed=5, sizes=sizes))["output"].isfinite().all(), f"{NAMES[bad]} stays")
        for name in before.keys() - set(subject.facts.constants):
            expect(not torch.equal(before[name], layer.get_buffer(name)), f"{name} stands still after {NAMES[bad]}")


@law(
    where="once",
    observed="the layer holds a tensor that is neither a parameter nor a buffer",
    tried="vars(layer), layer.state_dict()",
    means="Optimizers, state_dict() and .to(device) pass over it.",
    remedy="What is learned is an nn.Parameter, in an nn.ParameterList if there are several; what is not is a buffer: "
    "self.register_buffer(name, ...) in __init__, with persistent=False if it can be computed again.",
)
def registered(subject: Subject) -> None:
    """The tensors of a new layer are parameters and buffers."""
    for module in subject.new().modules():
        for name, value in vars(module).items():
            held = value if isinstance(value, list | tuple) else [value]
            expect(
                not any(isinstance(v, torch.Tensor) for v in held),
                f"the attribute {name} holds a tensor that is neither a parameter nor a buffer",
            )


@law(
    observed="a layer that is saved and loaded, copied or pickled computes something else",
    tried="empty = copy.deepcopy(layer); layer(x); empty.load_state_dict(layer.state_dict()); "
    "empty.eval()(x) - layer.eval()(x)",
    means="A checkpoint, an average of weights (EMA, SWA) or a second process has another network than was trained.",
    remedy="Keep every number that the output depends on as a parameter or by self.register_buffer(name, tensor), "
    "counters too: register_buffer('steps', torch.zeros((), dtype=torch.int64)).",
    explained_by=("buffers-move-in-training-only", "evaluation-keeps-nothing", "registered"),
)
def state(subject: Subject) -> None:
    """A layer restored from its state dict, a copy or a pickle computes and trains the same, and shares no memory."""
    for settings in subject.settings:
        layer, x = subject.experienced(settings), subject.input()
        layer(subject.input(seed=2))
        trained = copy.deepcopy(layer)
        torch.manual_seed(0)
        step = trained(x)
        y = layer.eval()(x)
        empty = subject.new(**settings).eval()
        empty.load_state_dict(layer.state_dict(), strict=True)
        copies = {"load_state_dict": empty, "copy.deepcopy": copy.deepcopy(layer)}
        if subject.pickles:
            copies["pickle"] = pickle.loads(pickle.dumps(layer))
        for way, other in copies.items():
            expect(torch.equal(other.eval()(x), y), f"the layer from {way} computes something else")
            before = y.clone()
            torch.manual_seed(0)
            again = other.train()(x)  # must not reach back into the layer it came from
            expect(torch.equal(layer(x), before), f"the layer from {way} shares memory with the one it came from")
            expect(
                torch.equal(again, step) and same_tensors(buffers_of(other), buffers_of(trained)),
                f"the layer from {way} trains on as another one",
                "other = copy.deepcopy(layer); layer(x); other.load_state_dict(layer.state_dict()); "
                "layer(2 * x); other(2 * x); [(a - b).abs().max() for a, b in zip(layer.buffers(), other.buffers())]",
            )


@law(
    when=is_stateful,
    observed="a batch that the layer refuses has moved its running statistics",
    tried="layer(x[:1])",
    means="A caller that catches the error, and trains on, has other statistics.",
    remedy="Check the input before anything is updated.",
    binds="zoo",
)
def state_outlives_errors(subject: Subject) -> None:
    """A batch that the layer refuses, as a whole or in its last part, has moved no statistics."""
    by = InputError if subject.declares else Exception
    for settings in subject.settings:
        for samples in range(1, 10):
            layer = subject.experienced(settings)
            before = buffers_of(layer)
            if refusal(layer, subject.input(samples=samples), by) is not None:
                expect(same_tensors(buffers_of(layer), before), f"{samples} samples, {settings}: the statistics moved")


@fact(
    does="computes in evaluation something else than in training",
    tried="y = layer(x); layer.eval()(x) - y",
    means="Monitors compare the two, and averages of weights need its statistics computed again.",
)
def train_differs(subject: Subject) -> bool:
    """Evaluation differs from training exactly when the facts say so."""
    layer, x = subject.experienced(), subject.input()
    trained = fresh(layer, x)
    return not close(layer.eval()(x), trained)


@fact(
    does="is in evaluation a scale and a shift per channel, whatever the input",
    tried="layer.eval(); at_zero, at_one = layer(0 * x), layer(0 * x + 1); layer(x) - at_zero - (at_one - at_zero) * x",
    means="It can be folded into the layer before it, for a smaller and faster network.",
)
def folds(subject: Subject) -> bool:
    """Evaluation is a scale and a shift per channel; or of a weight, the same weight every time, whatever the input."""
    layer, x = subject.experienced().eval(), subject.input()
    if subject.on_weights:
        return torch.equal(layer(x), layer(x)) and not subject.facts.reads_input
    at_zero, at_one = layer(torch.zeros_like(x)), layer(torch.ones_like(x))
    alike = all(close(v, v.mean([0, *range(2, x.dim())], keepdim=True).expand_as(v)) for v in (at_zero, at_one))
    return alike and close(layer(x), at_zero + (at_one - at_zero) * x)
