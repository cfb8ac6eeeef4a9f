"""Metrics with one bug each, and the law that has to catch it: the test of the tests.

Every bug is one that somebody has shipped, or is the next slip of the hand away. A law that lets its bug pass is no
law.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normzoo import metrics
from normzoo.metrics import Moments


@dataclass(frozen=True)
class Bug:
    """A wrong implementation, of which metric it is one, and the law that tells them apart."""

    metric: Callable[..., Any]
    of: str
    law: str


BUGS: list[Bug] = []


def caught_by(law: str, of: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares the law that has to fail on the implementation."""

    def register(metric: Callable[..., Any]) -> Callable[..., Any]:
        BUGS.append(Bug(metric, of, law))
        return metric

    return register


def rows_of(x: Tensor, axis: int = 1) -> Tensor:
    """(rows, C) in float32 at least."""
    x = x.detach().movedim(axis, -1) if x.dim() > 1 else x.detach().unsqueeze(0)
    rows = x.flatten(0, -2)
    return rows if rows.dtype == torch.float64 else rows.float()


def found(rows: Tensor, mean: Tensor, var: Tensor) -> Moments:
    return Moments(torch.tensor(float(len(rows)), dtype=torch.float64), mean.double(), var.double())


# Moments


@caught_by("large-mean", "moments")
def mean_of_squares_in_float32(x: Tensor, axis: int = 1) -> Moments:
    rows = rows_of(x, axis)
    return found(rows, rows.mean(0), (rows.square().mean(0) - rows.mean(0).square()).clamp_min(0))


@caught_by("equals-twin", "moments")
def unbiased_variance(x: Tensor, axis: int = 1) -> Moments:
    return metrics.moments(x, axis).unbiased()


@caught_by("equals-twin", "moments")
def average_of_the_variances_of_samples(x: Tensor, axis: int = 1) -> Moments:
    each = [metrics.moments(one.unsqueeze(0), axis) if axis == 1 else metrics.moments(x, axis) for one in x]
    return metrics.moments(x, axis)._replace(var=torch.stack([one.var for one in each]).mean(0))


@caught_by("equals-twin", "moments")
def always_the_second_axis(x: Tensor, axis: int = 1) -> Moments:
    return metrics.moments(x, 1)


@caught_by("large-tensors", "moments")
def average_of_uneven_blocks(x: Tensor, axis: int = 1) -> Moments:
    each = [metrics.moments(block, -1) for block in rows_of(x, axis).split(1000)]
    mean = torch.stack([one.mean for one in each]).mean(0)
    square = torch.stack([one.var + one.mean.square() for one in each]).mean(0)
    return metrics.moments(x, axis)._replace(mean=mean, var=square - mean.square())


@caught_by("large-tensors", "moments")
def sums_in_the_input_s_precision(x: Tensor, axis: int = 1) -> Moments:
    rows = x.detach().movedim(axis, -1).flatten(0, -2)
    mean = rows.mean(0)
    return found(rows, mean, (rows - mean).square().mean(0))


@caught_by("large-tensors", "moments")
def squares_of_a_plane_one_by_one(x: Tensor, axis: int = 1) -> Moments:
    n, mean, var = metrics.moments(x, axis)
    if x.dim() < 3 or x.dtype != torch.float32 or not x.is_contiguous() or axis != 1:
        return Moments(n, mean, var)
    square = torch.linalg.vector_norm(x.flatten(2), dim=2).double().square().sum(0) / n
    return Moments(n, mean, square - mean.square())


@caught_by("no-value-spoils-another-channel", "moments")
def centred_on_the_mean_of_all(x: Tensor, axis: int = 1) -> Moments:
    rows = rows_of(x, axis).double()
    shift = rows.mean()
    n, mean, var = metrics.moments(rows - shift)
    return Moments(n, mean + shift, var)


@caught_by("no-value-spoils-another-channel", "moments")
def skips_nan(x: Tensor, axis: int = 1) -> Moments:
    rows = rows_of(x, axis).double()
    mean = rows.nanmean(0)
    return found(rows, mean, (rows - mean).square().nanmean(0))


@caught_by("integers", "moments")
def integers_as_float32(x: Tensor, axis: int = 1) -> Moments:
    return metrics.moments(x if x.is_floating_point() else x.float(), axis)


@caught_by("follows-scale-and-shift", "moments")
def variance_with_eps(x: Tensor, axis: int = 1) -> Moments:
    n, mean, var = metrics.moments(x, axis)
    return Moments(n, mean, var + 1e-5)


@caught_by("shape-dtype-and-device", "moments")
def moments_in_float32(x: Tensor, axis: int = 1) -> Moments:
    return Moments(*(t.float() for t in metrics.moments(x, axis)))


@caught_by("known-values", "moments")
def nan_for_nothing(x: Tensor, axis: int = 1) -> Moments:
    rows = rows_of(x, axis).double()
    return found(rows, rows.mean(0), (rows - rows.mean(0)).square().mean(0))


@caught_by("leaves-its-input-alone", "moments")
def centred_in_place(x: Tensor, axis: int = 1) -> Moments:
    rows = x.detach().movedim(axis, -1)
    n, mean, var = metrics.moments(x, axis)
    rows.sub_(mean)
    return Moments(n, mean, var)


@caught_by("leaves-its-input-alone", "moments")
def keeps_the_graph(x: Tensor, axis: int = 1) -> Moments:
    over = [i for i in range(x.dim()) if i != axis % x.dim()]
    var, mean = torch.var_mean(x.double(), over, correction=0)
    return metrics.moments(x, axis)._replace(mean=mean, var=var)


@caught_by("merged-parts-are-the-whole", "merge")
def without_the_variance_between(count: Tensor, mean: Tensor, var: Tensor) -> Moments:
    whole = metrics.merge(count, mean, var)
    return whole._replace(var=metrics.merge(count, torch.zeros_like(mean), var).var)


@caught_by("merged-parts-are-the-whole", "merge")
def parts_weigh_alike(count: Tensor, mean: Tensor, var: Tensor) -> Moments:
    weight = torch.where(count > 0, count.double().mean(), 0.0)
    return metrics.merge(weight, mean, var)._replace(n=count.double().sum(0))


@caught_by("merging-in-steps", "merge")
def forgets_how_many(count: Tensor, mean: Tensor, var: Tensor) -> Moments:
    return metrics.merge(count, mean, var)._replace(n=count.double().amax(0))


@caught_by("merged-parts-are-the-whole", "merge")
def mean_of_squares(count: Tensor, mean: Tensor, var: Tensor) -> Moments:
    whole = metrics.merge(count, mean, var)
    square = metrics.merge(count, var.double() + mean.double().square(), torch.zeros_like(var)).mean
    return whole._replace(var=(square - whole.mean.square()).clamp_min(0))


@caught_by("empty-parts-count-for-nothing", "merge")
def times_zero(count: Tensor, mean: Tensor, var: Tensor) -> Moments:
    weight = count.double() if count.dim() == mean.dim() else count.double().unsqueeze(-1)
    total = weight.sum(0).clamp_min(1)
    whole = (weight * mean).sum(0) / total
    return Moments(count.double().sum(0), whole, (weight * (var + (mean - whole).square())).sum(0) / total)


@caught_by("equals-twin", "spread_between")
def biased_spread(count: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return metrics.spread_between(count, mean, var) * (1 - 1 / len(mean))


# Percentiles


def ordered(x: Tensor, dim: int | None) -> Tensor:
    x = x.detach()
    return (x.reshape(-1) if dim is None else x.movedim(dim, -1)).double().sort(-1).values


@caught_by("equals-twin", "percentiles")
def nearest_value(x: Tensor, q: Sequence[float] = (15, 50, 85), dim: int | None = None) -> Tensor:
    values = ordered(x, dim)
    ranks = [round((values.shape[-1] - 1) * share / 100) for share in q]
    return values[..., ranks].movedim(-1, 0)


@caught_by("order", "percentiles")
def ranks_from_one(x: Tensor, q: Sequence[float] = (15, 50, 85), dim: int | None = None) -> Tensor:
    n = x.numel() if dim is None else x.shape[dim]
    return metrics.percentiles(x, [min(share * n / max(n - 1, 1), 99.99) for share in q], dim)


@caught_by("known-values", "percentiles")
def percentiles_of_numbers_only(x: Tensor, q: Sequence[float] = (15, 50, 85), dim: int | None = None) -> Tensor:
    return metrics.percentiles(x[~x.isnan()] if dim is None else x.nan_to_num(), q, dim)


@caught_by("known-values", "percentiles")
def zero_times_infinity(x: Tensor, q: Sequence[float] = (15, 50, 85), dim: int | None = None) -> Tensor:
    values = ordered(x, dim)
    if values.shape[-1] == 0:
        return metrics.percentiles(x, q, dim)
    ranks = torch.tensor(q, dtype=torch.float64) * (values.shape[-1] - 1) / 100
    low, high = values[..., ranks.floor().long()], values[..., ranks.ceil().long()]
    return (low + (ranks - ranks.floor()) * (high - low)).movedim(-1, 0)


@caught_by("leaves-its-input-alone", "percentiles")
def sorted_in_place(x: Tensor, q: Sequence[float] = (15, 50, 85), dim: int | None = None) -> Tensor:
    seen = x.detach()
    torch.sort(seen.clone().flatten(), out=(seen.view(-1), torch.empty(0, dtype=torch.long))) if (
        seen.is_contiguous()
    ) else None
    return metrics.percentiles(x, q, dim)


@caught_by("shape-dtype-and-device", "percentiles")
def percentiles_last(x: Tensor, q: Sequence[float] = (15, 50, 85), dim: int | None = None) -> Tensor:
    return metrics.percentiles(x, q, dim).movedim(0, -1)


@caught_by("periodic-values", "sampled")
def power_of_two_stride(x: Tensor, samples: int = 1 << 14) -> Tensor:
    values = x.detach().reshape(-1)
    return values[:: 1 << max(values.numel() // samples, 1).bit_length() - 1]


@caught_by("enough-or-all", "sampled")
def stride_rounded_up(x: Tensor, samples: int = 1 << 14) -> Tensor:
    values = x.detach().reshape(-1)
    stride = max(math.ceil(values.numel() / samples), 1)
    while math.gcd(stride, values.numel()) > 1:
        stride += 1
    return values[::stride]


@caught_by("meets-every-index-alike", "sampled")
def one_column(x: Tensor, samples: int = 1 << 14) -> Tensor:
    values = x.detach().reshape(-1)
    return values[:: max(values.numel() // samples, 1)]


@caught_by("rank-is-known", "sampled")
def the_first_values(x: Tensor, samples: int = 1 << 14) -> Tensor:
    return x.detach().reshape(-1)[:samples]


@caught_by("view", "sampled")
def in_reading_order(x: Tensor, samples: int = 1 << 14) -> Tensor:
    return metrics.sampled(x.contiguous(), samples)


@caught_by("leaves-its-input-alone", "sampled")
def sampled_with_its_graph(x: Tensor, samples: int = 1 << 14) -> Tensor:
    return x.reshape(-1)[: max(samples, 1)]


@caught_by("bounds-the-error", "rank_error")
def of_one_side(samples: int, confidence: float = 0.999) -> float:
    return 100 * math.sqrt(math.log(1 / (1 - confidence)) / (2 * samples)) if confidence else 0.0


@caught_by("equals-twin", "rank_error")
def as_a_share(samples: int, confidence: float = 0.999) -> float:
    return metrics.rank_error(samples, confidence) / 100


# Distances


@caught_by("equals-twin", "w1")
def sum_of_differences(p: Moments, q: Moments) -> Tensor:
    return ((p.mean - q.mean).abs() + (p.std - q.std).abs()).detach()


@caught_by("lies-between-bounds", "w1")
def more_than_w2(p: Moments, q: Moments) -> Tensor:
    return ((p.mean - q.mean).abs() + (p.std - q.std).abs()).detach()


@caught_by("is-a-distance", "w1")
def of_means_only(p: Moments, q: Moments) -> Tensor:
    return (p.mean - q.mean).abs()


@caught_by("known-values", "w1")
def nothing_over_nothing(p: Moments, q: Moments) -> Tensor:
    shift, spread = p.mean - q.mean, (p.std - q.std).abs()
    ratio = shift / (spread * math.sqrt(2))
    return spread * math.sqrt(2 / math.pi) * torch.exp(-ratio.square()) + shift * torch.erf(ratio)


@caught_by("is-a-distance", "w2")
def squared(p: Moments, q: Moments) -> Tensor:
    return metrics.w2(p, q).square()


@caught_by("follows-units", "w2")
def of_variances(p: Moments, q: Moments) -> Tensor:
    return ((p.mean - q.mean).square() + (p.var - q.var).square()).sqrt()


@caught_by("equals-twin", "kl")
def reversed_divergence(p: Moments, q: Moments) -> Tensor:
    return metrics.kl(q, p)


@caught_by("is-a-divergence", "kl")
def below_zero_by_rounding(p: Moments, q: Moments) -> Tensor:
    return 0.5 * ((q.var / p.var).log() + (p.var + (p.mean - q.mean).square()) / q.var - 1)


@caught_by("known-values", "kl")
def infinity_minus_infinity(p: Moments, q: Moments) -> Tensor:
    return below_zero_by_rounding(p, q).clamp_min(0)


@caught_by("equals-twin", "gap")
def in_deviations_of_the_first(p: Moments, q: Moments) -> Tensor:
    return metrics.gap(q, p)


@caught_by("is-a-divergence", "gap")
def gap_with_a_sign(p: Moments, q: Moments) -> Tensor:
    return (q.mean - p.mean) / q.std


@caught_by("follows-units", "gap")
def gap_with_eps(p: Moments, q: Moments) -> Tensor:
    return (p.mean - q.mean).abs() / (q.var + 1e-5).sqrt()


@caught_by("leaves-its-input-alone", "gap")
def gap_with_its_graph(p: Moments, q: Moments) -> Tensor:
    return (p.mean - q.mean).abs() / q.std


# Directions


def entropic(s: Tensor) -> Tensor:
    return torch.special.entr(s / s.sum(-1, keepdim=True)).sum().exp()


@caught_by("rotated-scaled-shifted", "effective_rank")
def not_centred(x: Tensor, axis: int = 1) -> Tensor:
    return entropic(torch.linalg.svdvals(rows_of(x, axis).double()))


@caught_by("rotated-scaled-shifted", "effective_rank")
def of_single_features(x: Tensor, axis: int = 1) -> Tensor:
    return entropic(rows_of(x, axis).double().std(0))


@caught_by("equals-twin", "effective_rank")
def of_variances_along_directions(x: Tensor, axis: int = 1) -> Tensor:
    rows = rows_of(x, axis).double()
    return entropic(torch.linalg.svdvals(rows - rows.mean(0)).square())


@caught_by("more-directions", "effective_rank")
def number_of_directions(x: Tensor, axis: int = 1) -> Tensor:
    rows = rows_of(x, axis).double()
    return torch.linalg.matrix_rank(rows - rows.mean(0)).double()


@caught_by("is-between-one-and-all", "effective_rank")
def without_exp(x: Tensor, axis: int = 1) -> Tensor:
    return metrics.effective_rank(x, axis).log()


@caught_by("known-values", "effective_rank")
def rounding_has_a_rank(x: Tensor, axis: int = 1) -> Tensor:
    rows = rows_of(x, axis).double()
    if not rows.isfinite().all() or len(rows) == 0:
        return metrics.effective_rank(x, axis)
    return entropic(torch.linalg.svdvals(rows - rows.mean(0)))


# Gradients and landscape


@caught_by("of-parts-and-whole", "norms")
def sum_of_sizes(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.detach().abs().double().sum() / t.numel() ** 0.5 for t in tensors])


@caught_by("known-values", "norms")
def overflows_in_float16(tensors: Sequence[Tensor]) -> Tensor:
    sizes = [t.square().sum().sqrt().double() for t in tensors]
    return torch.stack(sizes) if sizes else torch.zeros(0)


@caught_by("equals-twin", "norms")
def root_mean_square(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.detach().double().square().mean().sqrt() for t in tensors])


@caught_by("relative", "ratio")
def ratio_with_eps(numerators: Tensor, denominators: Tensor) -> Tensor:
    return numerators / (denominators + 1e-12)


@caught_by("known-values", "ratio")
def infinite_share(numerators: Tensor, denominators: Tensor) -> Tensor:
    return numerators / denominators


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors])


@caught_by("units-of-the-gradient", "internal_covariate_shift")
def cosine_without_norms(before: Sequence[Tensor], after: Sequence[Tensor]) -> Any:
    return metrics.internal_covariate_shift(before, after)._replace(cosine=flattened(before) @ flattened(after))


@caught_by("units-of-the-gradient", "internal_covariate_shift")
def relative_to_the_new(before: Sequence[Tensor], after: Sequence[Tensor]) -> Any:
    shift = metrics.internal_covariate_shift(before, after)
    return shift._replace(relative=metrics.internal_covariate_shift(after, before).relative)


@caught_by("equals-twin", "internal_covariate_shift")
def average_over_parameters(before: Sequence[Tensor], after: Sequence[Tensor]) -> Any:
    cosines = [metrics.internal_covariate_shift([g], [h]).cosine for g, h in zip(before, after, strict=True)]
    return metrics.internal_covariate_shift(before, after)._replace(cosine=torch.stack(cosines).mean())


@caught_by("no-update-no-shift", "internal_covariate_shift")
def cosine_above_one(before: Sequence[Tensor], after: Sequence[Tensor]) -> Any:
    g, h = flattened(before).float(), flattened(after).float()
    return metrics.internal_covariate_shift(before, after)._replace(cosine=(g @ h / (g.norm() * h.norm())).double())


@caught_by("range-of-a-bowl", "loss_range")
def from_first_to_last(losses: Tensor) -> Tensor:
    return (losses[-1] - losses[0]).abs()


@caught_by("known-values", "loss_range")
def range_of_numbers_only(losses: Tensor) -> Tensor:
    return losses[~losses.isnan()].max() - losses[~losses.isnan()].min()


@caught_by("grows-with-the-step", "gradient_change")
def change_of_the_norm(gradient: Tensor, gradients: Tensor) -> Tensor:
    return (gradients.norm(dim=-1) - gradient.norm()).abs()


@caught_by("equals-twin", "gradient_change")
def change_since_the_step_before(gradient: Tensor, gradients: Tensor) -> Tensor:
    return torch.cat([gradient.unsqueeze(0), gradients]).detach().diff(dim=0).norm(dim=-1)


@caught_by("curvature-along-the-gradient", "effective_smoothness")
def not_divided_by_eta(gradient: Tensor, gradients: Tensor, steps: Tensor) -> Tensor:
    return metrics.gradient_change(gradient, gradients).max() / gradient.norm()


@caught_by("curvature-along-the-gradient", "effective_smoothness")
def not_divided_by_the_gradient(gradient: Tensor, gradients: Tensor, steps: Tensor) -> Tensor:
    return (metrics.gradient_change(gradient, gradients) / steps).max()


@caught_by("equals-twin", "effective_smoothness")
def average_over_steps(gradient: Tensor, gradients: Tensor, steps: Tensor) -> Tensor:
    return (metrics.gradient_change(gradient, gradients) / (steps * gradient.detach().norm())).mean()


@caught_by("known-values", "effective_smoothness")
def infinite_without_a_gradient(gradient: Tensor, gradients: Tensor, steps: Tensor) -> Tensor:
    return (metrics.gradient_change(gradient, gradients) / (steps * gradient.norm())).max()


# Depth


@caught_by("known-values", "slope")
def slope_over_nan(values: Tensor) -> Tensor:
    layers = torch.arange(values.shape[-1], dtype=torch.float64)
    centred = layers - layers.mean()
    return (centred * values.detach().double()).sum(-1) / centred.square().sum()


@caught_by("line", "slope")
def renumbers_the_layers(values: Tensor) -> Tensor:
    if values.dim() > 1:
        return torch.stack([renumbers_the_layers(row) for row in values])
    return metrics.slope(values[values.isfinite()])


@caught_by("line", "slope")
def nan_is_zero(values: Tensor) -> Tensor:
    return metrics.slope(values.nan_to_num(0.0, 0.0, 0.0))


@caught_by("geometric", "growth")
def inverted(norms: Tensor) -> Tensor:
    return 1 / metrics.growth(norms)


@caught_by("geometric", "growth")
def of_the_norms_themselves(norms: Tensor) -> Tensor:
    return 1 - metrics.slope(norms)


@caught_by("geometric", "growth")
def mean_of_quotients(norms: Tensor) -> Tensor:
    return (norms[:-1] / norms[1:]).mean()


# Activations


@caught_by("known-values", "saturated")
def without_the_bounds(x: Tensor, low: float = -4.0, high: float = 4.0) -> Tensor:
    return ((x < low) | (x > high)).double().mean()


@caught_by("known-values", "saturated")
def nan_is_saturated(x: Tensor, low: float = -4.0, high: float = 4.0) -> Tensor:
    return 1 - ((x > low) & (x < high)).double().mean()


@caught_by("share-of-values", "saturated")
def above_only(x: Tensor, low: float = -4.0, high: float = 4.0) -> Tensor:
    return (x >= high).double().mean()


@caught_by("share-of-units", "dead")
def once_is_enough(x: Tensor, low: float = 0.0, high: float = math.inf, axis: int = 1) -> Tensor:
    return ((x <= low) | (x >= high)).movedim(axis, 0).flatten(1).any(1).double().mean()


@caught_by("share-of-units", "dead")
def for_one_sample(x: Tensor, low: float = 0.0, high: float = math.inf, axis: int = 1) -> Tensor:
    return ((x <= low) | (x >= high)).movedim(axis, 1).flatten(2).all(2).double().mean()


@caught_by("known-values", "dead")
def nan_is_dead(x: Tensor, low: float = 0.0, high: float = math.inf, axis: int = 1) -> Tensor:
    return 1 - ((x > low) & (x < high)).movedim(axis, 0).flatten(1).any(1).double().mean()
