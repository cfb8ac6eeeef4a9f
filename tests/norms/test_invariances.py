"""What the facts say of the output is what the layer does: two-sided, observed == declared."""

import copy
import math
from typing import Any

import torch
from laws import assert_close, close, fresh, law, on_activations, refusal, set_axes
from subjects import LAYOUTS, C, Subject

from normzoo.norms._arguments import keyword_defaults
from normzoo.norms.weight._weight import WeightTransform


@law()
def test_scales(subject: Subject) -> None:
    """`f(a x) = f(x)` for a > 0 exactly when the facts say so."""
    layer, x = subject.build(), 10 * subject.input()
    observed = all(close(fresh(layer, a * x), fresh(layer, x), 1e-3) for a in (0.7, 3.0, 50.0))
    assert observed == subject.layer.facts.scales


@law()
def test_centres(subject: Subject) -> None:
    """`f(x + c) = f(x)` exactly when the facts say so."""
    layer, x = subject.build(), subject.input()
    observed = all(close(fresh(layer, x + c), fresh(layer, x), 1e-6) for c in (-2.0, 0.5, 10.0))
    assert observed == subject.layer.facts.centres


@law(when=on_activations)
def test_cancels_bias(subject: Subject) -> None:
    """A bias per channel before the layer changes nothing exactly when the facts say so."""
    layer, x = subject.build(), subject.input()
    bias = torch.linspace(-2, 3, C, dtype=torch.float64).view(C, *[1] * (x.dim() - 2))
    assert close(fresh(layer, x + bias), fresh(layer, x), 1e-6) == subject.layer.facts.cancels_bias


@law(when=lambda subject: bool(subject.layer.facts.axes) and not {"C/w", "s/w"} & set(subject.layer.facts.axes))
def test_moments(subject: Subject) -> None:
    """Over the declared axes the mean is 0 and the mean square 1; a weight that needs no partner has length 1."""
    facts = subject.layer.facts
    layer = subject.default(**subject.groups)
    y = layer(10 * subject.input() + 3)
    dims = set_axes(subject)
    if "C/G" in facts.axes:  # a group is not a dimension yet
        groups = layer.num_groups
        assert isinstance(groups, int)
        y, dims = y.unflatten(1, (groups, -1)), {0} & dims | {2} | {dim + 1 for dim in dims if dim > 1}
    over = sorted(dims)
    values = math.prod(y.shape[dim] for dim in over)
    mean, square = y.mean(over), y.square().mean(over)
    if subject.on_weights and not facts.wants_partner:
        square = square * values
    assert close(mean, torch.zeros_like(mean), 1e-6) == facts.zero_mean
    assert close(square, torch.ones_like(square), 1e-4) == facts.unit_square


@law(when=lambda subject: not set_axes(subject) or bool({"C/w", "s/w"} & set(subject.layer.facts.axes)))
def test_moments_of_nothing(subject: Subject) -> None:
    """Without axes, or over sliding windows, there is nothing over which a moment could be 0 or 1."""
    assert not subject.layer.facts.zero_mean
    assert not subject.layer.facts.unit_square


@law()
def test_random(subject: Subject) -> None:
    """Two passes over the same input differ, from the same state, iff random numbers are drawn."""
    layer, x = subject.experienced(), subject.input()
    layer._forward_pre_hooks.clear()
    assert close(fresh(layer, x), fresh(layer, x)) != subject.layer.facts.random
    assert close(fresh(layer.eval(), x), fresh(layer, x)), "evaluation draws nothing"


@law(when=on_activations)
def test_batch_multiple(subject: Subject) -> None:
    """The layer refuses batches that are not a multiple of `batch_multiple`, and takes all others."""
    multiple, n = subject.layer.facts.batch_multiple, LAYOUTS[subject.layout][0]
    for samples in range(2 * n, 2 * n + 2 * multiple):
        refused = refusal(subject.experienced(), subject.input(samples=samples)) is not None
        assert refused == (samples % multiple > 0), f"{samples} samples"


@law(per_class=True)
def test_syncs(subject: Subject) -> None:
    """The layer has an argument `sync` exactly when the facts say so."""
    assert ("sync" in keyword_defaults(subject.layer)) == subject.layer.facts.syncs, "there is an argument sync"


@law(when=lambda subject: subject.on_weights, per_class=True)
def test_reads_input(subject: Subject) -> None:
    """The weight transform changes the input of the layer exactly when the facts say so."""
    host = torch.nn.Linear(5, C).double()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer, y = subject.build(), host(x)
    assert isinstance(layer, WeightTransform)
    assert close(layer.of_input(host, x, y), y) != subject.layer.facts.reads_input


@law()
def test_independence(subject: Subject) -> None:
    """One value of x moves another value of y exactly when an axis joins the two."""
    layer = subject.build(subject.groups)
    layer.drop_activation()  # which may hide what moves
    axes = set(subject.layer.facts.axes)
    n, c, *positions = LAYOUTS[subject.layout]
    x = subject.input(sizes=(n, c, *[30 if "s/w" in axes else size for size in positions]))
    y = fresh(layer, x)

    def moves(change: tuple[Any, ...], look: tuple[Any, ...]) -> bool:
        """Whether a change of x at one place is seen in y at another."""
        moved = x.clone()
        moved[change] += 1.5
        return not close(fresh(layer, moved)[look], y[look])

    joined = {"C", "C/G", "C/w"} & axes
    assert moves((0,), (slice(1, None),)) == ("N" in axes), "another sample"
    for dim in range(1 if subject.on_weights else 2, x.dim()):
        first = (slice(None),) * dim
        size = x.shape[dim]
        far = moves((*first, 0), (*first, size - 1))
        near = moves((*first, 0), (*first, 1))
        assert (near, far) == (bool({"s", "s/w"} & axes), "s" in axes), f"another position along axis {dim}"
    if not subject.on_weights:
        assert moves((0, 0), (slice(None), 1)) == bool(joined), "the neighbouring channel"
        assert moves((0, 0), (slice(None), C - 1)) == ("C" in axes), "a channel far away"


@law()
def test_brings_activation(subject: Subject) -> None:
    """Dropping the activation that a layer brings changes it; without one there is nothing to drop."""
    layer, x = subject.build(), subject.input()
    dropped = copy.deepcopy(layer)
    dropped.drop_activation()
    assert close(fresh(dropped, x), fresh(layer, x)) != subject.layer.facts.brings_activation
    # What remains is odd around its own shift, which no activation is.
    if subject.layer.facts.brings_activation:
        assert_close(fresh(dropped, x) + fresh(dropped, -x), 2 * fresh(dropped, torch.zeros_like(x)))


@law(when=lambda subject: subject.on_weights)
def test_wants_partner(subject: Subject) -> None:
    """A weight whose length grows with its fan-in leaves the scale of activations to another layer."""
    lengths = []
    for samples in (4, 64):
        layer, x = subject.default(), subject.input(samples=samples)
        for _ in range(32):  # a power iteration that begins at random first finds its vector
            weight = layer(x)
        lengths.append(weight.flatten(1).norm(dim=1).mean())
    assert (lengths[1] > 2 * lengths[0]).item() == subject.layer.facts.wants_partner
