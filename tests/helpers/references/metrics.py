"""What every metric should compute: plain Python numbers, walked over one by one, sorted or integrated; and by others.

A twin takes what the metric takes, reads its tensors as lists, and returns float64 of the shape that is documented. It
is written from the formula in the metric's docstring, or from what that formula is the solution of: a distance of two
Gaussians is an integral here, a slope a ratio of whole numbers, a singular value what rotations leave.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import pairwise, product
from statistics import NormalDist
from typing import Any

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from normzoo.metrics import Moments

NAN = math.nan


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def entries(x: Tensor) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every index and its value."""
    nested = x.tolist()
    for index in product(*map(range, x.shape)):
        value = nested
        for i in index:
            value = value[i]
        yield index, value


def along(x: Tensor, axis: int) -> list[list[float]]:
    """The values of each channel."""
    axis %= x.dim()
    channels: list[list[float]] = [[] for _ in range(x.shape[axis])]
    for index, value in entries(x):
        channels[index[axis]].append(value)
    return channels


def numbers(tensors: Sequence[Tensor]) -> list[float]:
    return [value for t in tensors for _, value in entries(t)]


def length(values: Sequence[float]) -> float:
    return math.sqrt(math.fsum(v * v for v in values))


def largest(values: Sequence[float]) -> float:
    return NAN if any(v != v for v in values) else sorted(values)[-1]


# Moments


def moments(x: Tensor, axis: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    channels = along(x, axis)
    n = len(channels[0]) if channels else 0
    if n == 0:
        return tensor(0.0), tensor([0.0] * len(channels)), tensor([0.0] * len(channels))
    means = [math.fsum(values) / n for values in channels]
    variances = [math.fsum((v - mu) ** 2 for v in values) / n for values, mu in zip(channels, means, strict=True)]
    return tensor(float(n)), tensor(means), tensor(variances)


def merge(count: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By the mean of the squares, which is wrong in floats and right in whole numbers."""
    parts, channels = mean.shape
    totals, means, variances = [], [], []
    for c in range(channels):
        found = [(float(count[r] if count.dim() == 1 else count[r, c]), mean[r, c], var[r, c]) for r in range(parts)]
        parts_with_values = [(n, float(mu), float(v)) for n, mu, v in found if n > 0]
        totals.append(sum(n for n, _, _ in parts_with_values))
        if not all(math.isfinite(v) for part in parts_with_values for v in part):
            means.append(sum(n * mu for n, mu, _ in parts_with_values) / totals[-1])
            variances.append(NAN)
            continue
        kept = [[Fraction(v) for v in part] for part in parts_with_values]
        n = sum((n for n, _, _ in kept), Fraction(0))
        whole = sum((n * mu for n, mu, _ in kept), Fraction(0)) / max(n, 1)
        square = sum((n * (v + mu**2) for n, mu, v in kept), Fraction(0)) / max(n, 1)
        means.append(float(whole))
        variances.append(float(square - whole**2))
    return tensor(totals[0] if count.dim() == 1 else totals), tensor(means), tensor(variances)


def spread_between(count: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """By the squared differences of all pairs of parts."""
    parts, channels = mean.shape
    found = []
    for c in range(channels):
        weights = [float(count[k] if count.dim() == 1 else count[k, c]) for k in range(parts)]
        kept = [(w, float(mean[k, c]), math.sqrt(float(var[k, c]))) for k, w in enumerate(weights) if w > 0]
        total = sum(w for w, _, _ in kept)
        square = sum(v * w * ((a - b) ** 2 + (s - t) ** 2) for v, a, s in kept for w, b, t in kept)
        found.append(square / 2 / total / (len(kept) - 1) if len(kept) > 1 else NAN)
    return tensor(found)


# Percentiles


def percentiles(x: Tensor, q: Sequence[float] = (15, 50, 85), dim: int | None = None) -> Tensor:
    if dim is None:
        return tensor([percentile([value for _, value in entries(x)], share) for share in q])
    moved = x.movedim(dim, -1)
    rows = [percentile(moved[index].tolist(), share) for share in q for index in product(*map(range, moved.shape[:-1]))]
    return tensor(rows).reshape(len(q), *moved.shape[:-1])


def percentile(values: list[float], q: float) -> float:
    if not values or any(v != v for v in values):
        return NAN
    ordered = sorted(values)
    rank = (len(ordered) - 1) * q / 100
    i = math.floor(rank)
    if rank == i or ordered[i] == ordered[i + 1]:
        return ordered[i]
    if math.isinf(ordered[i]) or math.isinf(ordered[i + 1]):
        return ordered[i] + ordered[i + 1]
    return ordered[i] + (rank - i) * (ordered[i + 1] - ordered[i])


def sampled(x: Tensor, samples: int = 1 << 14) -> Tensor:
    places = [(sum(i * s for i, s in zip(index, x.stride(), strict=True)), value) for index, value in entries(x)]
    in_memory = [value for _, value in sorted(places)]
    n = len(in_memory)
    free = [
        s for s in range(1, max(n // samples, 1) + 1) if not any(s % f == 0 and n % f == 0 for f in range(2, s + 1))
    ]
    return tensor([in_memory[i] for i in range(0, n, max(free))])


def rank_error(samples: int, confidence: float = 0.999) -> Tensor:
    """Where the bound of Dvoretzky, Kiefer and Wolfowitz meets the probability, by bisection."""
    low, high = 0.0, 1000.0
    while high - low > 1e-12:
        share = (low + high) / 200
        exceeded = 2 * math.exp(-2 * samples * share**2)
        low, high = (100 * share, high) if exceeded > 1 - confidence else (low, 100 * share)
    return tensor(low)


# Gaussians


@cache
def nodes(step: float) -> list[tuple[float, float]]:
    """Standard normal values, and how much each of them counts."""
    last = round(9 / step)
    return [(k * step, NormalDist().pdf(k * step) * step) for k in range(-last, last + 1)]


def mean_over_normal(f: Callable[[float], float], step: float = 0.02) -> float:
    return math.fsum(f(z) * weight for z, weight in nodes(step))


def by_channel(f: Callable[[float, float, float, float], float], p: Moments, q: Moments) -> Tensor:
    columns = (p.mean.tolist(), p.var.double().sqrt().tolist(), q.mean.tolist(), q.var.double().sqrt().tolist())
    return tensor([NAN if any(v != v for v in row) else f(*row) for row in zip(*columns, strict=True)])


def w1(p: Moments, q: Moments) -> Tensor:
    """The area between the quantile functions: the value that has z below it goes where z has its."""
    return by_channel(
        lambda mu, s, nu, t: mean_over_normal(lambda z: abs((mu + s * z) - (nu + t * z)), 0.002),  # it has a corner
        p,
        q,
    )


def w2(p: Moments, q: Moments) -> Tensor:
    return by_channel(
        lambda mu, s, nu, t: math.sqrt(mean_over_normal(lambda z: ((mu + s * z) - (nu + t * z)) ** 2)),
        p,
        q,
    )


def kl(p: Moments, q: Moments) -> Tensor:
    """The mean of ln p(x) - ln q(x) over p."""

    def nats(mu: float, s: float, nu: float, t: float) -> float:
        if s == 0 or t == 0:
            return NAN if s == t else math.inf
        return mean_over_normal(lambda z: math.log(t / s) - z**2 / 2 + ((mu + s * z - nu) / t) ** 2 / 2)

    return by_channel(nats, p, q)


def gap(p: Moments, q: Moments) -> Tensor:
    def scores(mu: float, s: float, nu: float, t: float) -> float:
        if t == 0:
            return NAN if mu == nu else math.inf
        return abs(NormalDist(nu, t).zscore(mu))

    return by_channel(scores, p, q)


# Directions


def effective_rank(x: Tensor, axis: int = 1) -> Tensor:
    channels = along(x, axis)
    if not channels or not channels[0] or not all(map(math.isfinite, (v for values in channels for v in values))):
        return tensor(NAN)
    centred = [[v - math.fsum(values) / len(values) for v in values] for values in channels]
    s = singular_values(centred)
    if len({tuple(row) for row in zip(*channels, strict=True)}) == 1:
        return tensor(NAN)
    shares = [v / sum(s) for v in s]
    return tensor(math.exp(-sum(share * math.log(share) for share in shares if share > 0)))


def singular_values(columns: list[list[float]]) -> list[float]:
    """Jacobi: turn two columns at a time until all are at right angles; their lengths are left."""
    columns = [list(column) for column in columns]
    for _ in range(12):
        for i in range(len(columns)):
            for j in range(i):
                a, b = columns[i], columns[j]
                alpha, beta = length(a) ** 2, length(b) ** 2
                gamma = math.fsum(u * v for u, v in zip(a, b, strict=True))
                angle = math.atan2(2 * gamma, alpha - beta) / 2
                c, s = math.cos(angle), math.sin(angle)
                columns[i] = [c * u + s * v for u, v in zip(a, b, strict=True)]
                columns[j] = [c * v - s * u for u, v in zip(a, b, strict=True)]
    return [length(column) for column in columns]


# Gradients


def norms(tensors: Sequence[Tensor]) -> Tensor:
    return tensor([length(numbers([t])) for t in tensors])


def ratio(numerators: Tensor, denominators: Tensor) -> Tensor:
    return tensor([a / b if b > 0 else NAN for a, b in zip(numerators.tolist(), denominators.tolist(), strict=True)])


def internal_covariate_shift(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    g, h = numbers(before), numbers(after)
    product_of_sizes = length(g) * length(h)
    cosine = math.fsum(a * b for a, b in zip(g, h, strict=True)) / product_of_sizes if product_of_sizes else NAN
    return tensor(math.dist(g, h)), tensor(math.dist(g, h) / length(g) if length(g) else NAN), tensor(cosine)


# Landscape


def loss_range(losses: Tensor) -> Tensor:
    return tensor(largest(losses.tolist()) + largest([-v for v in losses.tolist()]))


def gradient_change(gradient: Tensor, gradients: Tensor) -> Tensor:
    return tensor([math.dist(gradient.tolist(), one) for one in gradients.tolist()])


def effective_smoothness(gradient: Tensor, gradients: Tensor, steps: Tensor) -> Tensor:
    g = gradient.tolist()
    if length(g) == 0:
        return tensor(NAN)
    # What the weights have moved by is eta g.
    moved = [math.dist([0.0] * len(g), [eta * v for v in g]) for eta in steps.tolist()]
    return tensor(largest([math.dist(g, one) / way for one, way in zip(gradients.tolist(), moved, strict=True)]))


# Depth


def slope(values: Tensor) -> Tensor:
    if values.dim() > 1:
        return torch.stack([slope(row) for row in values])
    known = [(layer, Fraction(v)) for layer, v in enumerate(values.tolist()) if math.isfinite(v)]
    if len(known) < 2:
        return tensor(NAN)
    n, layers, total = len(known), sum(layer for layer, _ in known), sum(v for _, v in known)
    mixed, square = sum(layer * v for layer, v in known), sum(layer**2 for layer, _ in known)
    return tensor(float((n * mixed - layers * total) / (n * square - layers**2)))


def growth(norms: Tensor) -> Tensor:
    return tensor(math.exp(-slope(tensor([math.log(v) if v > 0 else NAN for v in norms.tolist()])).item()))


# Activations


def saturated(x: Tensor, low: float = -4.0, high: float = 4.0) -> Tensor:
    values = [value for _, value in entries(x)]
    return tensor(sum(v <= low or v >= high for v in values) / len(values) if values else NAN)


def dead(x: Tensor, low: float = 0.0, high: float = math.inf, axis: int = 1) -> Tensor:
    units = along(x, axis)
    if not any(units):
        return tensor(NAN)
    return tensor(sum(all(v <= low or v >= high for v in values) for values in units) / len(units))


# By others


def others(x: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(x.dim()) if i != axis % x.dim())


def moments_by_torch(x: Tensor, axis: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    var, mean = torch.var_mean(x.double(), others(x, axis), correction=0)
    return tensor(float(x.numel() // len(mean))), mean, var


def moments_by_numpy(x: Tensor, axis: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    wide = x.double().numpy()
    mean, var = np.mean(wide, axis=others(x, axis)), np.var(wide, axis=others(x, axis))
    return tensor(float(x.numel() // len(mean))), torch.from_numpy(mean), torch.from_numpy(var)


def merge_by_numpy(count: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weights = np.broadcast_to(count.double().reshape(len(mean), -1).numpy(), mean.shape)
    whole = np.average(mean.double().numpy(), axis=0, weights=weights)
    within = np.average(var.double().numpy(), axis=0, weights=weights)
    between = np.average((mean.double().numpy() - whole) ** 2, axis=0, weights=weights)
    return count.double().sum(0), torch.from_numpy(whole), torch.from_numpy(within + between)


def percentiles_by_torch(x: Tensor, q: Sequence[float] = (15, 50, 85), dim: int | None = None) -> Tensor:
    return torch.quantile(x.double(), tensor(q) / 100, dim)


def percentiles_by_numpy(x: Tensor, q: Sequence[float] = (15, 50, 85), dim: int | None = None) -> Tensor:
    return torch.from_numpy(np.percentile(x.double().numpy(), q, axis=dim))


def w1_by_integral(p: Moments, q: Moments) -> Tensor:
    """The area between the distribution functions, which cross where the quantiles do."""

    def area(mu: float, s: float, nu: float, t: float) -> float:
        if s == 0 or t == 0 or s == t:
            return mean_over_normal(lambda z: abs(mu - nu + (s - t) * z), 0.002)
        bounds = (min(mu - 12 * s, nu - 12 * t), max(mu + 12 * s, nu + 12 * t))
        crossing = (nu * s - mu * t) / (s - t)
        points = sorted({*bounds, mu, nu, *([crossing] if bounds[0] < crossing < bounds[1] else [])})
        one, other = NormalDist(mu, s), NormalDist(nu, t)
        return sum(scipy.integrate.quad(lambda x: abs(one.cdf(x) - other.cdf(x)), *ab)[0] for ab in pairwise(points))

    return by_channel(area, p, q)


def w1_by_scipy(p: Moments, q: Moments) -> Tensor:
    """Of two thousand values each, at equal steps of probability."""
    z = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    return by_channel(lambda mu, s, nu, t: stats.wasserstein_distance(mu + s * z, nu + t * z), p, q)


def w2_by_matrices(p: Moments, q: Moments) -> Tensor:
    """The Fréchet distance of many dimensions, as of images: `|dmu|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2))`."""

    def distance(mu: float, s: float, nu: float, t: float) -> float:
        turn = np.array([[0.6, -0.8], [0.8, 0.6]])  # a second dimension, turned: roots of matrices, not of entries
        a, b = (turn @ np.diag([v**2, 1.0]) @ turn.T for v in (s, t))
        between = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
        return math.sqrt((mu - nu) ** 2 + max(np.trace(a) + np.trace(b) - 2 * between, 0))

    return by_channel(distance, p, q)


def kl_by_torch(p: Moments, q: Moments) -> Tensor:
    one, other = (torch.distributions.Normal(m.mean.double(), m.var.double().sqrt()) for m in (p, q))
    return torch.distributions.kl_divergence(one, other)


def effective_rank_by_svd(x: Tensor, axis: int = 1) -> Tensor:
    rows = np.moveaxis(x.double().numpy(), axis, -1).reshape(-1, x.shape[axis])
    return tensor(np.exp(stats.entropy(np.linalg.svd(rows - rows.mean(0), compute_uv=False))))


def norms_by_torch(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(t.double()) for t in tensors])


def internal_covariate_shift_by_torch(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[Tensor, ...]:
    g, h = (torch.nn.utils.parameters_to_vector([t.double() for t in many]) for many in (before, after))
    return torch.dist(g, h), torch.dist(g, h) / torch.dist(g, torch.zeros_like(g)), F.cosine_similarity(g, h, dim=0)


def loss_range_by_numpy(losses: Tensor) -> Tensor:
    return tensor(np.ptp(losses.double().numpy()))


def gradient_change_by_torch(gradient: Tensor, gradients: Tensor) -> Tensor:
    return torch.cdist(gradients.double(), gradient.double().unsqueeze(0)).squeeze(1)


def slope_by_polyfit(values: Tensor) -> Tensor:
    rows = values.double().reshape(-1, values.shape[-1])
    known = [row.isfinite().numpy() for row in rows]
    fits = [np.polyfit(np.flatnonzero(k), row.numpy()[k], 1)[0] for row, k in zip(rows, known, strict=True)]
    return tensor(fits).reshape(values.shape[:-1])


def growth_by_regression(norms: Tensor) -> Tensor:
    return tensor(np.exp(-stats.linregress(np.arange(len(norms)), np.log(norms.double().numpy())).slope))
