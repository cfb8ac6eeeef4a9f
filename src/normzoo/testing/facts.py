"""What the facts say of a layer is what it does: two-sided, observed == declared."""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from normzoo.norms._arguments import keyword_defaults
from normzoo.norms.weight._weight import WeightTransform
from normzoo.testing._compare import assert_close, close, fresh, refusal
from normzoo.testing._law import expect, fact, law
from normzoo.testing._subject import Subject, let_draw, on_activations, set_axes

BUILT_ON_IT = "Networks, monitors and other laws rely on it."


@fact(
    does="returns the same for x and for a x",
    tried="fresh = lambda x: copy.deepcopy(layer)(x); (fresh(10 * x) - fresh(500 * x)).abs().max()",
    means="The scale of the weights before it changes nothing: monitors then report their effective learning rate.",
)
def scales(subject: Subject) -> bool:
    """`f(a x) = f(x)` for a > 0 exactly when the facts say so."""
    layer, x = subject.build(), 10 * subject.input()
    return all(close(fresh(layer, a * x), fresh(layer, x), 1e-3) for a in (0.7, 3.0, 50.0))


@fact(
    does="ignores a constant that is added to its input",
    tried="fresh = lambda x: copy.deepcopy(layer)(x); (fresh(x + 10) - fresh(x)).abs().max()",
    means="A single value per statistic then has nothing left: the layer is to refuse it.",
)
def centres(subject: Subject) -> bool:
    """`f(x + c) = f(x)` exactly when the facts say so."""
    layer, x = subject.build(), subject.input()
    return all(close(fresh(layer, x + c), fresh(layer, x), 1e-6) for c in (-2.0, 0.5, 10.0))


@fact(
    when=on_activations,
    does="ignores a bias per channel that is added just before it",
    tried="bias = torch.arange(float(x.shape[1])).view(-1, *[1] * (x.dim() - 2)); "
    "(copy.deepcopy(layer)(x + bias) - copy.deepcopy(layer)(x)).abs().max()",
    means="Networks build the layer before it without a bias, which would learn nothing.",
)
def cancels_bias(subject: Subject) -> bool:
    """A bias per channel before the layer changes nothing exactly when the facts say so."""
    layer, x = subject.build(), subject.input()
    bias = torch.linspace(-2, 3, x.shape[1], dtype=torch.float64).view(-1, *[1] * (x.dim() - 2))
    return close(fresh(layer, x + bias), fresh(layer, x), 1e-6)


@fact(
    where="once",
    does="has an argument `sync`",
    tried="inspect.signature(type(layer))",
    means="With sync=True, ranks share their statistics.",
    when=lambda subject: subject.is_norm,
)
def syncs(subject: Subject) -> bool:
    """The layer has an argument `sync` exactly when the facts say so."""
    return "sync" in keyword_defaults(subject.layer)


@fact(
    where="once",
    when=lambda subject: subject.on_weights,
    does="normalizes the input of the linear layer, too",
    tried="layer.of_input",
    means=BUILT_ON_IT,
)
def reads_input(subject: Subject) -> bool:
    """The weight transform changes the input of the layer exactly when the facts say so."""
    host = torch.nn.Linear(5, subject.features).double()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer, y = subject.build(), host(x)
    expect(isinstance(layer, WeightTransform), "a layer on weights is a WeightTransform")
    return not close(layer.of_input(host, x, y), y)


@fact(
    when=lambda subject: subject.on_weights,
    does="gives weights whose length grows with their fan-in",
    tried="layer(x).flatten(1).norm(dim=1)",
    means="Networks then add a layer of another kind, which controls the scale of activations.",
)
def wants_partner(subject: Subject) -> bool:
    """A weight whose length grows with its fan-in leaves the scale of activations to another layer."""
    lengths = []
    for samples in (4, 64):
        layer, x = subject.default(), subject.input(samples=samples)
        for _ in range(32):  # a power iteration that begins at random first finds its vector
            weight = layer(x)
        lengths.append(weight.flatten(1).norm(dim=1).mean())
    return bool(lengths[1] > 2 * lengths[0])


@fact(
    does="draws random numbers in training",
    tried="copy.deepcopy(layer)(x) - copy.deepcopy(layer)(x)",
    means="Two passes over a batch differ; activation checkpointing and ranks need the same numbers.",
)
def random(subject: Subject) -> bool:
    """Two passes over the same input differ, from the same state, iff random numbers are drawn."""
    layer, x = subject.experienced(), subject.input()
    let_draw(layer)
    differ = not close(fresh(layer, x), fresh(layer, x))
    expect(
        close(fresh(layer.eval(), x), fresh(layer, x)),
        "the layer draws random numbers in evaluation",
        "layer.eval(); layer(x) - layer(x)",
        "Draw only if self.training.",
    )
    return differ


@law(
    when=lambda subject: bool(subject.facts.axes) and not {"C/w", "s/w"} & set(subject.facts.axes),
    observed="the output has not the moments that the facts state",
    tried="layer(10 * x + 3).mean(), layer(10 * x + 3).square().mean()",
    means="The network starts with activations of another scale than it was built for.",
    remedy="Check the axes of the mean and the variance; or state zero_mean and unit_square as they are.",
)
def moments(subject: Subject) -> None:
    """Over the declared axes the mean is 0 and the mean square 1; a weight that needs no partner has length 1."""
    facts = subject.facts
    mean, square = moments_of(subject)
    furthest, of_square = mean.abs().max().item(), square[(square - 1).abs().argmax()].item()
    expect(
        close(mean, torch.zeros_like(mean), 1e-6) == facts.zero_mean,
        f"facts.zero_mean is {facts.zero_mean}, and over the axes {', '.join(facts.axes)} the mean reaches "
        f"{furthest:.3g}",
    )
    expect(
        close(square, torch.ones_like(square), 1e-4) == facts.unit_square,
        f"facts.unit_square is {facts.unit_square}, and over the axes {', '.join(facts.axes)} the mean square reaches "
        f"{of_square:.3g}",
    )


def moments_of(subject: Subject) -> tuple[Tensor, Tensor]:
    """Mean and mean square of the output over the axes."""
    layer = subject.default(**subject.groups)
    y = layer(10 * subject.input() + 3)
    dims = set_axes(subject)
    if "C/G" in subject.facts.axes:  # a group is not a dimension yet
        count = subject.groups.get("num_groups", 1)  # of unknown groups, the moments of all together
        y, dims = y.unflatten(1, (count, -1)), {0} & dims | {2} | {dim + 1 for dim in dims if dim > 1}
    over = sorted(dims)
    values = math.prod(y.shape[dim] for dim in over)
    mean, square = y.mean(over), y.square().mean(over)
    if subject.on_weights and not subject.facts.wants_partner:
        square = square * values
    return mean.flatten(), square.flatten()


@law(
    when=lambda subject: not set_axes(subject) or bool({"C/w", "s/w"} & set(subject.facts.axes)),
    observed="the facts state moments, but no axes over which they are taken",
    means=BUILT_ON_IT,
    remedy="Name the axes, such as axes=('N', 's'), or leave zero_mean and unit_square out.",
)
def moments_of_nothing(subject: Subject) -> None:
    """Without axes, or over sliding windows, there is nothing over which a moment could be 0 or 1."""
    expect(not subject.facts.zero_mean, "facts.zero_mean is true, and facts.axes names nothing that has a moment")
    expect(not subject.facts.unit_square, "facts.unit_square is true, and facts.axes names nothing that has a moment")


@law(
    when=on_activations,
    observed="the layer refuses other batches than facts.batch_multiple says",
    tried="layer(x[:3])",
    means="Loaders drop what does not fill a batch, by this fact.",
    remedy="facts = Facts(batch_multiple=...) with the multiple that the layer needs; raise an InputError otherwise.",
)
def batch_multiple(subject: Subject) -> None:
    """The layer refuses batches that are not a multiple of `batch_multiple`, and takes all others."""
    multiple, n = subject.facts.batch_multiple, subject.sizes[0]
    for samples in range(2 * n, 2 * n + 2 * multiple):
        refused = refusal(subject.experienced(), subject.input(samples=samples)) is not None
        expect(refused == (samples % multiple > 0), f"of {samples} samples: {'an error' if refused else 'no error'}")


def joins(subject: Subject) -> dict[str, bool]:
    """Whether one value of x moves another value of y, by where the two lie."""
    layer = subject.build(subject.groups)
    if subject.is_norm:
        layer.drop_activation()  # which may hide what moves
    n, c, *positions = subject.sizes
    windows = "s/w" in subject.facts.axes
    x = subject.input(sizes=(n, c, *[30 if windows else size for size in positions]))
    y = fresh(layer, x)

    def moves(change: tuple[Any, ...], look: tuple[Any, ...]) -> bool:
        """Whether a change of x at one place is seen in y at another."""
        moved = x.clone()
        moved[change] += 1.5
        return not close(fresh(layer, moved)[look], y[look])

    found = {"another sample": moves((0,), (slice(1, None),))}
    for dim in range(1 if subject.on_weights else 2, x.dim()):
        first = (slice(None),) * dim
        found[f"the next position along axis {dim}"] = moves((*first, 0), (*first, 1))
        found[f"the last position along axis {dim}"] = moves((*first, 0), (*first, x.shape[dim] - 1))
    if not subject.on_weights:
        found["the neighbouring channel"] = moves((0, 0), (slice(None), 1))
        found["a channel far away"] = moves((0, 0), (slice(None), c - 1))
    return found


@law(
    observed="other values share their statistics than facts.axes says",
    tried="moved = x.clone(); moved[0, 0] += 1.5; (copy.deepcopy(layer)(moved) != copy.deepcopy(layer)(x)).nonzero()",
    means="Samples leak into each other, or channels: accuracy then depends on what else is in the batch.",
    remedy="Check over which axes the mean and the variance are taken; or state axes as they are.",
)
def independence(subject: Subject) -> None:
    """One value of x moves another value of y exactly when an axis joins the two."""
    axes = set(subject.facts.axes)
    for where, moves in joins(subject).items():
        expected = bool(
            {
                "another sample": {"N"},
                "the next": {"s", "s/w"},
                "the last": {"s"},
                "the neighbouring channel": {"C", "C/G", "C/w"},
                "a channel far away": {"C"},
            }[where.partition(" position")[0]]
            & axes
        )
        expect(
            moves == expected,
            f"a change at one place {'moves' if moves else 'does not move'} {where}, and facts.axes is "
            f"{subject.facts.axes}",
        )


@law(
    when=lambda subject: subject.is_norm,
    observed="the fact brings_activation is wrong",
    tried="layer.drop_activation()",
    means="A network drops its own activation behind a layer that brings one.",
    remedy="State brings_activation as it is; drop_activation removes what there is.",
)
def brings_activation(subject: Subject) -> None:
    """Dropping the activation that a layer brings changes it; without one there is nothing to drop."""
    layer, x = subject.build(), subject.input()
    dropped = copy.deepcopy(layer)
    dropped.drop_activation()
    changes = not close(fresh(dropped, x), fresh(layer, x))
    brings = subject.facts.brings_activation
    expect(changes == brings, f"drop_activation() {'changes' if changes else 'keeps'} the output; the fact is {brings}")
    # What remains is odd around its own shift, which no activation is.
    if brings:
        assert_close(fresh(dropped, x) + fresh(dropped, -x), 2 * fresh(dropped, torch.zeros_like(x)))
