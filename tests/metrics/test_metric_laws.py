"""The laws of metrics: what a metric's docstring says is what it computes, of any shape, precision and memory format.

Every function of `normzoo.metrics` has a row in `metric_subjects.py`, and is tested by the laws of all metrics and
its own; a test reads `moments-large-mean`. Its slow twin is in `references/metrics.py`. `metric_bugs.py` holds wrong
implementations, and the law that has to catch each. A new metric needs a twin and a row, and edits nothing here.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from metric_bugs import BUGS, Bug
from metric_subjects import (
    FORMATS,
    HALF,
    LARGE,
    LAYOUTS,
    SUBJECTS,
    Case,
    Oracle,
    Subject,
    activations,
    gradients,
    normal,
    pairs_of_gaussians,
    results,
    spread_over,
    tensor,
    uniform,
)
from references import metrics as twins
from scipy import stats
from torch import Tensor

from normzoo import metrics
from normzoo.metrics import Moments, moments, percentiles, rank_error
from normzoo.metrics.moments import BLOCK

inf, nan = math.inf, math.nan


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are tiny here: a second thread only waits, and with other work on the machine it does so for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# What the laws share


def assert_close(observed: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Of equal shapes and values; NaN equals NaN."""
    assert len(results(observed)) == len(results(expected))
    for one, other in zip(results(observed), results(expected), strict=True):
        assert one.shape == other.shape, what
        same_values = torch.allclose(one.double(), other.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
        assert same_values, f"{what}: {one} is not {other}"


def many_gaussians(seed: int, count: int = 300) -> Moments:
    """Of all sizes; some constant."""
    std = (3 * normal(count, seed=seed)).exp() * (uniform(count, seed=seed + 1) > 0.1)
    return Moments(tensor(9.0), (2 * normal(count, seed=seed + 2)).exp() * normal(count, seed=seed + 3), std**2)


def moved(p: Moments, scale: float, shift: float) -> Moments:
    """Those of `scale x + shift`."""
    return Moments(p.n, scale * p.mean + shift, scale**2 * p.var)


def orthogonal(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed))[0]


# Laws


@dataclass(frozen=True)
class Law:
    check: Callable[[Subject], None]
    of: tuple[str, ...]


LAWS: dict[str, Law] = {}


def law(*of: str) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Registers a law under its function's name, for these metrics or for all."""

    def register(check: Callable[[Subject], None]) -> Callable[[Subject], None]:
        LAWS[check.__name__.replace("_", "-")] = Law(check, of or tuple(SUBJECTS))
        return check

    return register


def variants(subject: Subject) -> Iterator[tuple[int, str, torch.dtype, Case]]:
    """The ordinary inputs in every precision and memory format, with the number of each."""
    for i, one in enumerate(subject.cases()):
        for dtype in subject.dtypes:
            plain = one.to(dtype)
            strides = [t.stride() for t in plain.tensors]
            for name, change in FORMATS.items():
                changed = plain.each(change)
                if name == "contiguous" or [t.stride() for t in changed.tensors] != strides:
                    yield i, f"case {i}, {dtype}, {name}", dtype, changed


@law()
def equals_twin(subject: Subject) -> None:
    for _, what, dtype, one in variants(subject):
        expected = subject.twin(*one.args, **one.kwargs)
        assert_close(subject.metric(*one.args, **one.kwargs), expected, subject.tolerance_of(dtype), what)


@law()
def known_values(subject: Subject) -> None:
    tolerance = max(subject.tolerance, 1e-12)
    for i, (one, expected) in enumerate(subject.known()):
        assert_close(subject.metric(*one.args, **one.kwargs), expected, tolerance, f"known {i}: {one}")
        assert_close(subject.twin(*one.args, **one.kwargs), expected, tolerance, f"twin of known {i}: {one}")


@law()
def shape_dtype_and_device(subject: Subject) -> None:
    shapes = [[t.shape for t in results(subject.twin(*one.args, **one.kwargs))] for one in subject.cases()]
    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        for i, what, dtype, one in variants(subject):
            there = one.each(lambda t, device=device: t.to(device))
            found = subject.metric(*there.args, **there.kwargs)
            assert [t.shape for t in results(found)] == shapes[i], what
            for observed in results(found):
                assert observed.isfinite().all(), what
                if subject.returns is not None:
                    assert (observed.dtype, observed.device.type) == (subject.returns(dtype), device), what
            assert (subject.returns is None) == isinstance(found, float)


@law()
def leaves_its_input_alone(subject: Subject) -> None:
    """Also where it need not convert anything; and asks for no gradient, nor hands one on."""
    for *_, one in variants(subject):
        inputs = one.each(lambda t: t.detach().requires_grad_(t.is_floating_point()))
        derived = inputs.each(lambda t: t * 1)
        copies = [t.detach().clone() for t in one.tensors]
        for given in (inputs, derived):
            versions = [t._version for t in given.tensors]
            for found in results(subject.metric(*given.args, **given.kwargs)):
                assert not found.requires_grad
            assert versions == [t._version for t in given.tensors], "written to"
            assert_close(tuple(given.tensors), tuple(copies), 0.0, "written to")


# Moments


def assert_same_moments(observed: Moments, x: Tensor, axis: int, tolerance: float) -> None:
    """As torch finds them in float64, in standard deviations and in shares of the variance."""
    n, mean, var = twins.moments_by_torch(x, axis)
    assert observed.n == n
    assert_close((observed.mean - mean) / var.sqrt(), torch.zeros_like(mean), tolerance, "mean")
    assert_close(observed.var / var, torch.ones_like(var), tolerance, "variance")


@law("moments")
def large_tensors(subject: Subject) -> None:
    """Those that are read in blocks; the last shape has several, of uneven length."""
    tolerances = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
    for shape, (dtype, tolerance) in product(LARGE.values(), tolerances.items()):
        x = activations(*shape).to(dtype)
        for change in FORMATS.values():
            assert_same_moments(subject.metric(change(x)), x, 1, tolerance)
    for axis in (0, -1):
        x = activations(12, 70, 100, axis=axis).float()
        assert_same_moments(subject.metric(x, axis), x, axis, 1e-5)
    x = activations(3, 7, 160, 170).float()
    assert x.numel() > BLOCK
    two_values = 0.3 * normal(1, 2, 512, 500).sign().float()  # whose rounding errors do not cancel
    for name in ("contiguous", "channels-last"):
        assert_same_moments(subject.metric(FORMATS[name](x)), x, 1, 1e-5)
        assert_same_moments(subject.metric(FORMATS[name](two_values)), two_values, 1, 5e-5)


@law("moments")
def large_mean(subject: Subject) -> None:
    """What a mean far from 0 takes from float32 is not taken from the variance; nor where one pass may just do."""
    for shape, mean in product([*LARGE.values(), *LAYOUTS.values()], (3.9, 4.1, 1e4, 1e6)):
        x = (normal(*shape) + mean).float()
        for name in ("contiguous", "channels-last"):
            assert_same_moments(subject.metric(FORMATS[name](x)), x, 1, 1e-5)
    one_off = normal(*LARGE["NCL"]).float()
    one_off[:, 3] += 1e5
    assert_same_moments(subject.metric(one_off), one_off, 1, 1e-5)
    for shape, constant in product((LARGE["NCHW"], LARGE["NCL"], LAYOUTS["NCHW"]), (0.1, -1e5 / 3)):
        n, mean, var = subject.metric(torch.full(shape, constant))
        assert_close(mean / constant, torch.ones_like(mean), 1e-7)
        assert (var >= 0).all()
        assert (var <= 1e-14 * constant**2).all()


@law("moments")
def no_value_spoils_another_channel(subject: Subject) -> None:
    for shape, mean in product((LARGE["NCL"], LAYOUTS["NCL"]), (0.0, 1e4)):
        x = normal(*shape).float()
        x[:, 2] += mean
        n, means, variances = twins.moments_by_torch(x)
        x[1, 0, 2], x[0, 1, 1] = inf, nan
        means[:2], variances[:2] = tensor([inf, nan]), nan
        assert_close(subject.metric(x), (n, means, variances), 1e-4)


@law("moments")
def integers(subject: Subject) -> None:
    for shape in (LARGE["NCHW"], LAYOUTS["NCHW"]):
        picture = (256 * uniform(*shape)).to(torch.uint8)
        for x in (picture, picture.char(), picture.long() + 2**26, picture > 99):
            assert_same_moments(subject.metric(x), x, 1, 1e-8)


@law("moments")
def follows_scale_and_shift(subject: Subject) -> None:
    for shape in (LARGE["NCL"], LAYOUTS["NCHW"]):
        x = activations(*shape).float()
        n, mean, var = subject.metric(x)
        assert_close(subject.metric(-8 * x), (n, -8 * mean, 64 * var), 0.0)  # a power of two rounds nothing
        assert_close(subject.metric(x + 3), (n, mean + 3, var), 1e-5)
        assert_close(subject.metric(x.flip(0)), (n, mean, var), 1e-6)


def parts() -> list[Tensor]:
    """Of uneven size, some empty, far from 0."""
    return [1e3 + (1 + i) * normal(n, 3, 2, seed=i) + i for i, n in enumerate((5, 0, 1, 60, 0, 2))]


def columns(many: Sequence[Moments]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(list(column)) for column in zip(*many, strict=True))


@law("merge")
def merged_parts_are_the_whole(subject: Subject) -> None:
    many = [moments(part) for part in parts()]
    whole = moments(torch.cat(parts()))
    assert_close(subject.metric(*columns(many)), whole, 1e-12)
    assert_close(subject.metric(*columns(many[::-1])), whole, 1e-12)
    count, mean, var = columns(many)
    assert_close(subject.metric(count[:, None].expand(mean.shape), mean, var)[1:], whole[1:], 1e-12)


@law("merge")
def merging_in_steps(subject: Subject) -> None:
    many = [moments(part) for part in parts()]
    at_once = subject.metric(*columns(many))
    for i in range(1, len(many)):
        two = [subject.metric(*columns(many[:i])), subject.metric(*columns(many[i:]))]
        assert_close(subject.metric(*columns(two)), at_once, 1e-12)
    one_by_one = many[0]
    for part in many[1:]:
        one_by_one = subject.metric(*columns([one_by_one, part]))
    assert_close(one_by_one, at_once, 1e-12)


@law("merge")
def empty_parts_count_for_nothing(subject: Subject) -> None:
    count, mean, var = columns([moments(part) for part in parts()])
    expected = subject.metric(count, mean, var)
    for said in (nan, inf, 1e300):
        mean[count == 0], var[count == 0] = said, said
        assert_close(subject.metric(count, mean, var), expected, 1e-12)


# Percentiles


@law("percentiles")
def order(subject: Subject) -> None:
    """They rise with q, from the least value to the largest; and follow the values, in whatever order these come."""
    q = [0.0, 0.1, 15, 30, 49.9, 50, 85, 99, 100]
    mirrored = [100 - share for share in reversed(q)]
    for x in (normal(3, 50), (3 * normal(101)).round(), normal(2)):
        found = subject.metric(x, q)
        assert (found.diff() >= 0).all()
        assert found[[0, -1]].tolist() == [x.min(), x.max()]
        assert_close(subject.metric(x.flatten().flip(0), q), found, 0.0)
        assert_close(subject.metric(2 * x + 3, q), 2 * found + 3, 1e-12)
        assert_close(-subject.metric(-x, mirrored).flip(0), found, 1e-12)


def off_by(x: Tensor, value: Tensor, q: float) -> float:
    """How many percentage points the rank of a value is from q; a value that occurs often has many ranks."""
    least, most = 100 * (x < value).double().mean().item(), 100 * (x <= value).double().mean().item()
    return max(least - q, q - most, 0.0)


def assert_sampled_well(subject: Subject, x: Tensor, samples: int, what: str) -> None:
    few, q = subject.metric(x, samples), (1, 5, 15, 50, 85, 95, 99)
    for share, value in zip(q, percentiles(few, q), strict=True):
        off = off_by(x, value, share)
        assert off <= rank_error(len(few)), f"{what}: the {share}th of {len(few)} is off by {off}"


@law("sampled")
def enough_or_all(subject: Subject) -> None:
    for numel, samples in product((1, 2, 7, 64, 720, 5040, 30030, 65536, 65537), (1, 3, 100, 4096)):
        few = subject.metric(torch.arange(numel), samples)
        assert len(few) == numel or samples <= len(few) < numel
        assert len(few.unique()) == len(few)
        steps = few.diff().unique()
        assert len(steps) <= 1, "not evenly spread"
        assert all(math.gcd(step, numel) == 1 for step in steps.tolist())
        assert len(steps) == 0 or few[-1] + steps[0] >= numel, "the end is never seen"


@law("sampled")
def view(subject: Subject) -> None:
    """It copies nothing where memory has no holes."""
    x = activations(4, 8, 16, 16)
    for name in ("contiguous", "channels-last", "reversed"):
        one = FORMATS[name](x)
        memory = [t.untyped_storage().data_ptr() for t in (one, subject.metric(one, 100))]
        assert memory[0] == memory[1]


def assert_even(subject: Subject, shape: tuple[int, ...], samples: int) -> None:
    """Every index of every axis is met about as often as any other, where it is met often."""
    numel = math.prod(shape)
    places = subject.metric(torch.arange(numel).view(shape), samples)
    for axis, n in enumerate(shape):
        counts = torch.bincount(places // math.prod(shape[axis + 1 :]) % n, minlength=n)
        expected = len(places) / n
        assert (counts - expected).abs().max() <= max(0.25 * expected, 2), f"{shape}, axis {axis}: {counts.tolist()}"


@law("sampled")
def meets_every_index_alike(subject: Subject) -> None:
    for shape in ((64, 32, 8, 8), (128, 1024), (100, 30, 6, 6), (1024, 128), (60, 3, 32, 32), (32, 16, 14, 14)):
        assert_even(subject, shape, 4096)


@law("sampled")
def periodic_values(subject: Subject) -> None:
    """Whatever repeats itself after a power of two: rows, channels, stripes."""
    places = torch.arange(1 << 17)
    for k in range(1, 14):
        assert_sampled_well(subject, (places % 2**k).float(), 1024, f"period 2^{k}")
        assert_sampled_well(subject, (places // 2**k % 2).float(), 1024, f"stripes of 2^{k}")


def distributions() -> dict[str, Tensor]:
    """As activations have them: with tails, ties, channels and samples that differ, and pictures that are smooth."""
    shape = (64, 16, 16, 8)
    z = normal(*shape).float()
    x, y = torch.arange(16.0).view(16, 1), torch.arange(8.0)
    return {
        "normal": z,
        "ReLU": z.relu(),
        "heavy tails": z / uniform(*shape, seed=1).float(),
        "log-normal": (2 * z).exp(),
        "channels differ": z + 5 * normal(1, 16, 1, 1, seed=2).float(),
        "samples differ": z + 5 * normal(64, 1, 1, 1, seed=3).float(),
        "rows differ": z + x,
        "columns differ": z + y,
        "smooth": (x / 5).sin() * (y / 3).cos() + 0.1 * z,
        "a ramp": torch.linspace(0, 1, z.numel()).view(shape),
        "a dark corner": z * (torch.arange(64).view(64, 1, 1, 1) > 48),
    }


@law("sampled")
def rank_is_known(subject: Subject) -> None:
    for (what, x), samples in product(distributions().items(), (512, 4096)):
        assert_sampled_well(subject, x, samples, what)
        assert_sampled_well(subject, FORMATS["channels-last"](x), samples, f"{what}, channels-last")


@law("rank_error")
def bounds_the_error(subject: Subject) -> None:
    """Kolmogorov's exact distribution exceeds the bound no more often than stated, and nearly as often."""
    for samples, confidence in product((10, 100, 1 << 14), (0.9, 0.999)):
        exceeded = stats.kstwo.sf(subject.metric(samples, confidence) / 100, samples)
        assert 0.3 * (1 - confidence) <= exceeded <= 1 - confidence
        assert subject.metric(4 * samples, confidence) == pytest.approx(subject.metric(samples, confidence) / 2)


# Distances


@law("w1", "w2")
def is_a_distance(subject: Subject) -> None:
    p, q, r = (many_gaussians(seed) for seed in (10, 20, 30))
    d = subject.metric
    assert (d(p, q) >= 0).all()
    assert not d(p, p).any()
    for other in (q, p._replace(mean=p.mean + 1), p._replace(var=p.var + 1)):
        assert (d(p, other) > 0).all(), "equal, of what differs"
    assert_close(d(p, q), d(q, p), 1e-12)
    assert (d(p, r) <= (d(p, q) + d(q, r)) * (1 + 1e-12)).all()


@law("w1", "w2")
def lies_between_bounds(subject: Subject) -> None:
    """The mean has to travel, and the root of the mean square is the larger mean."""
    p, q = many_gaussians(10), many_gaussians(20)
    assert (subject.metric(p, q) >= (p.mean - q.mean).abs() * (1 - 1e-12)).all()
    assert (subject.metric(p, q) <= ((p.mean - q.mean).square() + (p.std - q.std).square()).sqrt() * (1 + 1e-12)).all()


@law("w1", "w2", "kl", "gap")
def follows_units(subject: Subject) -> None:
    """Another zero changes no distance; another unit changes those that have a unit, and no other."""
    (one, *_) = pairs_of_gaussians()
    p, q = one.args
    found = subject.metric(p, q)
    for scale, shift in ((1.0, 7.0), (3.0, 0.0), (-0.01, -2.0), (1e6, 1e6)):
        factor = abs(scale) if subject.twin in (twins.w1, twins.w2) else 1.0
        assert_close(subject.metric(moved(p, scale, shift), moved(q, scale, shift)) / factor, found, 1e-8)


@law("kl", "gap")
def is_a_divergence(subject: Subject) -> None:
    """At least 0, and 0 for the same: also where rounding would have it less."""
    n = 20000
    p = Moments(tensor(9.0), normal(n, seed=1), uniform(n, seed=2) + 0.1)
    near = p._replace(var=p.var * (1 + 1e-9 * normal(n, seed=3)))
    assert (subject.metric(p, near) >= 0).all()
    assert not subject.metric(p, p).any()
    far = p._replace(mean=p.mean + 1)
    assert (subject.metric(far, p) > 0).all()
    assert (subject.metric(far._replace(var=9 * p.var), p._replace(var=9 * p.var)) < subject.metric(far, p)).all()


# Directions


def rows_of_rank() -> Tensor:
    return normal(40, 6) * tensor([5, 3, 1, 0.5, 0.1, 0.01])


@law("effective_rank")
def is_between_one_and_all(subject: Subject) -> None:
    for x in (rows_of_rank(), normal(500, 3), normal(4, 30), normal(2, 9), uniform(9, 1)):
        assert 1 - 1e-6 <= subject.metric(x) <= min(x.shape[1], len(x) - 1) + 1e-6


@law("effective_rank")
def rotated_scaled_shifted(subject: Subject) -> None:
    x = rows_of_rank()
    found = subject.metric(x)
    for other in (x @ orthogonal(6), -1e-3 * x, 1e3 * x, x + 100 * normal(6), x.flip(0), x.flip(1), x.repeat(3, 1)):
        assert_close(subject.metric(other), found, 1e-6)


@law("effective_rank")
def more_directions(subject: Subject) -> None:
    """Each direction that is filled more evenly with the rest adds to it."""
    found = [subject.metric(rows_of_rank()[:, :k]).item() for k in range(1, 7)]
    assert all(a < b for a, b in pairwise(found))
    weak = [subject.metric(spread_over(4, 4) * tensor([1, 1, 1, s])).item() for s in (0, 0.01, 0.1, 0.5, 1)]
    assert all(a < b for a, b in pairwise(weak))


# Gradients and landscape


@law("norms")
def of_parts_and_whole(subject: Subject) -> None:
    many = gradients()
    whole = subject.metric([torch.cat([g.flatten() for g in many])])
    assert_close(subject.metric([subject.metric(many)]), whole, 1e-12)
    assert_close(subject.metric([-4 * g for g in many]), 4 * subject.metric(many), 1e-12)
    half = [g.to(dtype) for g, dtype in zip(many, (torch.float64, torch.float32, *HALF), strict=False)]
    assert_close(subject.metric(half), twins.norms(half), 1e-6)


@law("internal_covariate_shift")
def no_update_no_shift(subject: Subject) -> None:
    """The first layer has none below it: exactly 0 and 0, and 1 but for rounding, never more."""
    for seed in range(20):
        g = [normal(5, 7, seed=seed), 1e-6 * normal(5, seed=seed + 1)]
        l2, relative, cosine = subject.metric(g, [t.clone() for t in g])
        assert (l2, relative) == (0, 0)
        assert 1 - 1e-15 <= cosine <= 1


@law("internal_covariate_shift")
def units_of_the_gradient(subject: Subject) -> None:
    g, h = [normal(5, 7), normal(5, seed=1)], [normal(5, 7, seed=2), normal(5, seed=3)]
    l2, relative, cosine = subject.metric(g, h)
    assert_close(subject.metric([8 * t for t in g], [8 * t for t in h]), (8 * l2, relative, cosine), 1e-12)
    assert_close(
        subject.metric(h, g),
        (l2, relative * twins.length(twins.numbers(g)) / twins.length(twins.numbers(h)), cosine),
        1e-12,
    )
    assert_close(subject.metric(g, [100 * t for t in h]).cosine, cosine, 1e-12)
    assert_close(subject.metric(g, [-t for t in h]).cosine, -cosine, 1e-12)


@dataclass(frozen=True)
class Bowl:
    """`L(theta) = theta^T H theta / 2`, from a point along its gradient."""

    hessian: Tensor
    start: Tensor
    steps: Tensor = field(default_factory=lambda: tensor([0.05, 0.1, 0.2, 0.4]))

    @property
    def gradient(self) -> Tensor:
        return self.hessian @ self.start

    @property
    def tried(self) -> list[Tensor]:
        return [self.start - eta * self.gradient for eta in self.steps]

    @property
    def gradients(self) -> Tensor:
        return torch.stack([self.hessian @ theta for theta in self.tried])

    @property
    def losses(self) -> Tensor:
        return torch.stack([theta @ self.hessian @ theta / 2 for theta in self.tried])


def bowls() -> list[tuple[Tensor, Bowl]]:
    """With the eigenvalues 7, 2, 1 and -3, and their directions in the columns."""
    turn = orthogonal(4)
    hessian = turn @ torch.diag(tensor([7, 2, 1, -3])) @ turn.T
    starts = [*turn.T, normal(4), 1e-3 * normal(4, seed=1), turn[:, 0] + 1e-3 * turn[:, 1]]
    return [(turn, Bowl(hessian, start)) for start in starts]


@law("effective_smoothness")
def curvature_along_the_gradient(subject: Subject) -> None:
    """Of a quadratic: `||H g|| / ||g||` whatever the steps; at most the top eigenvalue, where g lies along it."""
    for i, (_, bowl) in enumerate(bowls()):
        g = bowl.gradient
        found = subject.metric(g, bowl.gradients, bowl.steps)
        assert_close(found, (bowl.hessian @ g).norm() / g.norm(), 1e-9)
        assert found <= 7 + 1e-9
        if i < 4:
            assert_close(found, tensor([7.0, 2, 1, 3])[i], 1e-9)
        longer = replace(bowl, steps=3 * bowl.steps)
        assert_close(subject.metric(g, longer.gradients, longer.steps), found, 1e-9)


@law("gradient_change")
def grows_with_the_step(subject: Subject) -> None:
    for _, bowl in bowls():
        expected = bowl.steps * (bowl.hessian @ bowl.gradient).norm()
        assert_close(subject.metric(bowl.gradient, bowl.gradients), expected, 1e-9)


@law("loss_range")
def range_of_a_bowl(subject: Subject) -> None:
    """Along the top direction the loss is `(1 - 7 eta)^2 L`: least at 0.1, and largest across the valley, at 0.4."""
    bowl = bowls()[0][1]
    found = subject.metric(bowl.losses)
    assert_close(found, ((1 - 2.8) ** 2 - (1 - 0.7) ** 2) * tensor(3.5), 1e-9)
    assert_close(subject.metric(bowl.losses.flip(0) + 5), found, 1e-9)
    assert_close(subject.metric(-3 * bowl.losses), 3 * found, 1e-9)


@law("ratio")
def relative(subject: Subject) -> None:
    a, b = uniform(6) + 0.1, uniform(6, seed=1) + 0.1
    assert_close(subject.metric(5 * a, 5 * b), subject.metric(a, b), 1e-12)
    assert_close(subject.metric(a, b) * subject.metric(b, a), torch.ones(6), 1e-12)
    assert_close(subject.metric(a * 1e-30, b * 1e-30), subject.metric(a, b), 1e-12)


# Depth


@law("slope")
def line(subject: Subject) -> None:
    layers = torch.arange(30.0, dtype=torch.float64)
    for intercept, rise in product((0.0, -3.0, 1e4), (0.0, 0.25, -7.0)):
        values = intercept + rise * layers
        assert_close(subject.metric(values), tensor(rise), 1e-9)
        values[[0, 3, 4, 20]] = tensor([nan, inf, -inf, nan])  # the others keep their numbers
        assert_close(subject.metric(values), tensor(rise), 1e-9)
    a, b = normal(30), normal(30, seed=1)
    assert_close(subject.metric(2 * a - 3 * b), 2 * subject.metric(a) - 3 * subject.metric(b), 1e-9)
    assert_close(subject.metric(a.flip(0)), -subject.metric(a), 1e-9)
    assert_close(subject.metric(torch.stack([a, b])), torch.stack([subject.metric(a), subject.metric(b)]), 1e-12)


@law("growth")
def geometric(subject: Subject) -> None:
    """Exact where each gradient is a multiple of the one above it: on the way from the last layer to the first."""
    to_first = torch.arange(49.0, -1, -1, dtype=torch.float64)
    for factor, last in product((1.21, 0.5, 1.0, 3.0), (1e-8, 1.0, 1e3)):
        norms = last * factor**to_first
        assert_close(subject.metric(norms), tensor(factor), 1e-9)
        assert_close(subject.metric(norms.flip(0)), tensor(1 / factor), 1e-9)
        norms[[0, 7, 30]] = tensor([nan, 0, inf])
        assert_close(subject.metric(norms), tensor(factor), 1e-9)


# Activations


@law("saturated")
def share_of_values(subject: Subject) -> None:
    x = normal(10, 30)
    both = subject.metric(x, -0.5, 0.5)
    assert_close(subject.metric(x, -0.5, inf) + subject.metric(x, -inf, 0.5), both, 1e-12)
    assert_close(subject.metric(-x, -0.5, 0.5), both, 1e-12)
    assert_close(subject.metric(x.flatten().flip(0), -0.5, 0.5), both, 1e-12)
    x.requires_grad_()
    (slopes,) = torch.autograd.grad(x.relu().sum(), x)
    assert_close(subject.metric(x, 0.0, inf), (slopes == 0).double().mean(), 1e-12)


@law("dead")
def share_of_units(subject: Subject) -> None:
    """One sample that moves a unit keeps it alive; what is dead lets no gradient through."""
    x = -normal(10, 8, 3, 3).abs()
    assert subject.metric(x) == 1
    for alive in range(8):
        x[alive, alive, 1, 2] = 0.5
        assert subject.metric(x) == (7 - alive) / 8
    x = (normal(6, 40) - 0.9).requires_grad_()
    (slopes,) = torch.autograd.grad(x.relu().sum(), x)
    assert 0 < subject.metric(x) < 1
    assert_close(subject.metric(x), (slopes == 0).all(0).double().mean(), 1e-12)


# The tests


@pytest.mark.parametrize(
    "name, rule", [pytest.param(name, rule, id=f"{name}-{rule}") for rule, one in LAWS.items() for name in one.of]
)
def test_law(name: str, rule: str) -> None:
    LAWS[rule].check(SUBJECTS[name])


@pytest.mark.parametrize(
    "subject, oracle",
    [pytest.param(s, s.oracles[name], id=f"{metric}-{name}") for metric, s in SUBJECTS.items() for name in s.oracles],
)
def test_equals_the_implementation_of_others(subject: Subject, oracle: Oracle) -> None:
    for one, dtype in product(subject.cases(), subject.dtypes):
        given = one.to(dtype)
        expected = oracle.metric(*given.args, **given.kwargs)
        tolerance = max(oracle.tolerance, subject.tolerance_of(dtype))
        assert_close(subject.metric(*given.args, **given.kwargs), expected, tolerance, f"{given}")


def tiny_and_huge(subject: Subject) -> None:
    for shape, scale in product((LARGE["NCHW"], LAYOUTS["NCHW"]), (1e-25, 1e20)):
        x = (scale * normal(*shape)).float()
        assert_same_moments(subject.metric(x), x, 1, 1e-5)


def tiny_norms(subject: Subject) -> None:
    x = normal(1000).float()
    for scale in (1e-25, 1e25):
        assert_close(subject.metric([scale * x]) / scale, twins.norms_by_torch([x]), 1e-5)


def norm_of_many(subject: Subject) -> None:
    x = torch.full((1_000_000,), 0.3)
    assert_close(subject.metric([x]), twins.norms_by_torch([x]), 1e-5)


def fewer_than_rows(subject: Subject) -> None:
    assert_even(subject, (128, 16, 4, 4), 128)


# What does not hold, and is worth knowing.
LIMITS: list[tuple[str, Callable[[Subject], None], str]] = [
    ("moments", tiny_and_huge, "a large tensor is squared in float32: below 1e-22 that is 0, above 1e19 infinite"),
    ("norms", tiny_norms, "torch squares in float32: below 1e-22 that is 0, above 1e19 infinite"),
    ("norms", norm_of_many, "torch's norm adds up in float32 one by one: 5e-4 off for a million equal values"),
    ("sampled", fewer_than_rows, "with fewer samples than rows the stride is nearly a row: it stays in some channels"),
]


@pytest.mark.parametrize(
    "name, check",
    [
        pytest.param(name, check, id=f"{name}-{check.__name__}", marks=pytest.mark.xfail(reason=reason))
        for name, check, reason in LIMITS
    ],
)
def test_known_limits(name: str, check: Callable[[Subject], None]) -> None:
    check(SUBJECTS[name])


def test_every_metric_stands_before_the_laws() -> None:
    exported = {name for name, value in vars(metrics).items() if inspect.isfunction(value)}
    assert exported == set(SUBJECTS), (
        "a metric has no row, or a row no metric: write its twin from the formula in its docstring, slow and obvious, "
        "in tests/helpers/references/metrics.py, and a row in tests/helpers/metric_subjects.py"
    )
    assert all(subject.metric is vars(metrics)[name] for name, subject in SUBJECTS.items())


def test_moments_know_their_deviations() -> None:
    x = activations(5, 3, 4)
    found = moments(x)
    assert_close(found.std, x.transpose(0, 1).flatten(1).std(1, correction=0), 1e-12)
    assert_close(found.unbiased().var, x.transpose(0, 1).flatten(1).var(1), 1e-12)
    assert_close(found.unbiased()[:2], found[:2], 0.0)
    of_counts = Moments(tensor([1, 2, 5]), torch.zeros(3), torch.ones(3)).unbiased()
    assert_close(of_counts.var, tensor([nan, 2, 1.25]), 1e-12)
    assert moments(x[:1, :, :1]).unbiased().var.isnan().all()


@pytest.mark.parametrize("bug", [pytest.param(bug, id=bug.metric.__name__) for bug in BUGS])
def test_a_law_catches_the_bug(bug: Bug) -> None:
    assert bug.of in LAWS[bug.law].of
    with pytest.raises(AssertionError):
        LAWS[bug.law].check(replace(SUBJECTS[bug.of], metric=bug.metric))


def test_every_law_catches_a_bug() -> None:
    assert {bug.law for bug in BUGS} == set(LAWS)
    assert {bug.of for bug in BUGS} == set(SUBJECTS)
