"""Evaluation: what it depends on, and how it differs from training."""

import copy

import torch

from normzoo.testing._compare import assert_close, buffers_of, close, fresh
from normzoo.testing._law import expect, fact, law
from normzoo.testing._subject import Subject, is_stateful, let_draw


@law(
    when=lambda subject: is_stateful(subject) or not subject.declares,
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
    elif floats and not subject.facts.random:
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
