"""The metrics as they stand before the laws: what they are given, and what they are compared with."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from references import metrics as twins
from torch import Tensor

from normzoo import metrics
from normzoo.metrics import Moments

inf, nan = math.inf, math.nan

# What is given

HALF = (torch.bfloat16, torch.float16)
FULL = (torch.float64, torch.float32)


@dataclass(frozen=True)
class Case:
    """What a metric is given."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def each(self, f: Callable[[Tensor], Tensor]) -> "Case":
        """The same with every tensor changed."""
        return replace(self, args=tuple(mapped(f, arg) for arg in self.args))

    def to(self, dtype: torch.dtype) -> "Case":
        return self.each(lambda t: t.to(dtype) if t.is_floating_point() else t)

    @property
    def tensors(self) -> list[Tensor]:
        return [t for arg in self.args for t in tensors_of(arg)]


def case(*args: Any, **kwargs: Any) -> Case:
    return Case(args, kwargs)


def mapped(f: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, Moments):
        return Moments(*map(f, value))
    return [f(t) for t in value] if isinstance(value, list) else value


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return list(value) if isinstance(value, Moments | list) else []


def results(value: Any) -> list[Tensor]:
    """What a metric returned, one by one; a plain number as a tensor."""
    values = value if isinstance(value, tuple) else (value,)
    return [tensor(v) if isinstance(v, float) else v for v in values]


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def activations(*shape: int, axis: int = 1, seed: int = 0) -> Tensor:
    """Values of other mean and scale in every channel."""
    across = [n if i == axis % len(shape) else 1 for i, n in enumerate(shape)]
    return normal(*shape, seed=seed) * (1 + uniform(*across, seed=seed + 1)) + normal(*across, seed=seed + 2)


def gaussians(mean: Any, var: Any) -> Moments:
    return Moments(tensor(9.0), tensor(mean), tensor(var))


def spread_over(k: int, features: int) -> Tensor:
    """Rows that vary as much along each of k directions, and not along the others."""
    rows = torch.zeros(2 * k, features, dtype=torch.float64)
    for i in range(k):
        rows[2 * i, i], rows[2 * i + 1, i] = 1, -1
    return rows


def backwards(t: Tensor) -> Tensor:
    return t.permute([*reversed(range(t.dim()))])


# Axes in memory: an order, or values that are not next to each other.
FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels-last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1) if t.dim() > 2 else t,
    "reversed": lambda t: backwards(backwards(t).contiguous()),
    "strided": lambda t: torch.stack([t, t + 1], -1)[..., 0],
}
LAYOUTS = {"NC": (6, 4), "NCL": (3, 4, 5), "NCHW": (3, 4, 2, 3), "NCDHW": (2, 4, 2, 3, 2)}
LARGE = {"NC": (2900, 24), "NCL": (9, 5, 1700), "NCHW": (5, 6, 50, 50), "NCDHW": (3, 6, 5, 30, 30)}


# The table


@dataclass(frozen=True)
class Oracle:
    """An implementation by others, and how close it is."""

    metric: Callable[..., Any]
    tolerance: float = 1e-9


Known = tuple[Case, Any]


@dataclass(frozen=True)
class Subject:
    """A metric before the laws.

    Args:
        metric: the implementation.
        twin: the slow and obvious one.
        cases: ordinary inputs in float64, with finite results.
        known: inputs with the results that are known without a computation; NaN and infinity among them.
        oracles: implementations by others, for the ordinary inputs.
        dtypes: what it takes.
        returns: from the dtype of the inputs to that of the results, as documented; None for a plain number.
        tolerance: how close it is to its twin, where it computes in float64.
    """

    metric: Callable[..., Any]
    twin: Callable[..., Any]
    cases: Callable[[], list[Case]]
    known: Callable[[], list[Known]]
    oracles: Mapping[str, Oracle] = field(default_factory=dict)
    dtypes: tuple[torch.dtype, ...] = (*FULL, *HALF)
    returns: Callable[[torch.dtype], torch.dtype] | None = lambda dtype: torch.float64
    tolerance: float = 1e-9

    def tolerance_of(self, dtype: torch.dtype) -> float:
        return self.tolerance if self.returns is None or self.returns(dtype) == torch.float64 else 1e-5


def same(dtype: torch.dtype) -> torch.dtype:
    return dtype


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def of_activations(**kwargs: Any) -> list[Case]:
    """In every layout; along its channels and other axes."""
    cases = [case(activations(*shape), **kwargs) for shape in LAYOUTS.values()]
    return [*cases, *(case(activations(4, 3, 5, axis=axis), axis=axis, **kwargs) for axis in (0, -1, -2))]


def moments_known() -> list[Known]:
    x = tensor([[1, 0, 5, -2], [3, 0, nan, inf]])
    return [
        (case(x), (tensor(2.0), tensor([2, 0, nan, inf]), tensor([1, 0, nan, nan]))),
        (case(x, axis=0), (tensor(4.0), tensor([1, nan]), tensor([6.5, nan]))),
        (case(x[:1]), (tensor(1.0), x[0], torch.zeros(4))),
        (case(x[0]), (tensor(1.0), x[0], torch.zeros(4))),
        (case(torch.zeros(0, 3, 2)), (tensor(0.0), torch.zeros(3), torch.zeros(3))),
        (case(torch.zeros(2, 3, 0)), (tensor(0.0), torch.zeros(3), torch.zeros(3))),
        (case(torch.zeros(2, 0)), (tensor(0.0), torch.zeros(0), torch.zeros(0))),
    ]


def merge_cases() -> list[Case]:
    by_part, by_channel = tensor([3, 0, 1, 250]), torch.tensor([[3, 1], [0, 7], [1, 0], [40, 2]])
    return [
        case(count, 100 + normal(4, c, seed=3), uniform(4, c, seed=4))
        for count, c in ((by_part, 5), (by_part.long(), 1), (by_channel, 2))
    ]


def merge_known() -> list[Known]:
    mean, var = tensor([[1, 5], [3, nan]]), tensor([[0, 2], [0, nan]])
    nothing = torch.zeros(2)
    return [
        (case(tensor([2, 2]), mean, var), (tensor(4.0), tensor([2, nan]), tensor([1, nan]))),
        (case(tensor([2, 0]), mean, var), (tensor(2.0), mean[0], var[0])),
        (case(tensor([[2, 2], [6, 0]]), mean, var), (tensor([8, 2]), tensor([2.5, 5]), tensor([0.75, 2]))),
        (case(tensor([0, 0]), mean, var), (tensor(0.0), nothing, nothing)),
        (case(tensor([[0, 1], [0, 0]]), mean, var), (tensor([0, 1]), tensor([0, 5]), tensor([0, 2]))),
        (case(tensor([0])[:0], mean[:0], var[:0]), (tensor(0.0), nothing, nothing)),
    ]


def spread_cases() -> list[Case]:
    counts = tensor([3, 0, 1, 250]), torch.tensor([[3, 1], [2, 7], [1, 0], [40, 2]])
    return [case(count, normal(4, 2, seed=3), uniform(4, 2, seed=4)) for count in counts]


def spread_known() -> list[Known]:
    mean, var = tensor([[1, 5], [3, 5], [8, nan]]), tensor([[0, 4], [0, 1], [0, 0]])
    return [
        (case(tensor([2, 2, 0]), mean, var), tensor([4, 1])),  # 2 (1 + 1), 2 (1/4 + 1/4)
        (case(tensor([[3, 0], [1, 9], [0, 0]]), mean, var), tensor([3, nan])),
        (case(tensor([2, 2, 2]), mean, var), tensor([26, nan])),
        (case(tensor([2]), mean[:1], var[:1]), tensor([nan, nan])),
        (case(tensor([0, 0, 0]), mean, var), tensor([nan, nan])),
    ]


def percentiles_cases() -> list[Case]:
    q = (0, 2.5, 15, 50, 85, 99.9, 100)
    return [
        *(case(activations(*shape), q=q) for shape in LAYOUTS.values()),
        *(case(activations(3, 4, 5), q=q, dim=dim) for dim in (0, 1, -1)),
        case(activations(3, 4)),
        case((4 * normal(60)).round(), q=q),  # ties
        case(normal(1), q=q),
        case(normal(1, 3), q=q, dim=0),
        case(tensor(3.0), q=q),
    ]


def percentiles_known() -> list[Known]:
    five = tensor([0, 25, 50, 75, 100])
    q = tuple(five.tolist())
    ties = tensor([1, 2, 2, 2, 9])
    return [
        (case(tensor([4, 0, 3, 1, 2]), q=q), tensor([0, 1, 2, 3, 4])),
        (case(tensor([1, 2]), q=q), tensor([1, 1.25, 1.5, 1.75, 2])),
        (case(ties, q=q), tensor([1, 2, 2, 2, 9])),
        (case(tensor([7]), q=q), tensor([7] * 5)),
        (case(tensor([-inf, 0, 1, 2, inf]), q=q), tensor([-inf, 0, 1, 2, inf])),
        (case(tensor([0, inf]), q=q), tensor([0, inf, inf, inf, inf])),
        (case(tensor([-inf, 0]), q=q), tensor([-inf, -inf, -inf, -inf, 0])),
        (case(tensor([inf, inf, inf]), q=q), tensor([inf] * 5)),
        (case(tensor([-inf, inf]), q=q), tensor([-inf, nan, nan, nan, inf])),
        (case(tensor([1, nan, 2]), q=q), tensor([nan] * 5)),
        (case(tensor([[1, nan], [2, 3]]), q=(0, 100), dim=1), tensor([[nan, 2], [nan, 3]])),
        (case(torch.zeros(0), q=q), tensor([nan] * 5)),
        (case(torch.zeros(0, 2), q=(50,), dim=0), tensor([[nan, nan]])),
        (case(torch.zeros(0, 2), q=(50,), dim=1), torch.zeros(1, 0)),
        (case(torch.tensor([5, 1, 3]), q=(50,)), tensor([3])),
        (case(torch.tensor([2**24 + 1] * 2), q=(50,)), tensor([2**24 + 1])),  # float32 has no such number
        (case(tensor([1, 2]), q=()), torch.zeros(0)),
    ]


def sampled_cases() -> list[Case]:
    whole = [case(activations(*shape), samples=samples) for shape in LAYOUTS.values() for samples in (1, 4, 7, 1000)]
    return [*whole, case(activations(3, 4)), case(normal(1)), case(tensor(2.0)), case(normal(7, 8, 9).transpose(0, 2))]


def sampled_known() -> list[Known]:
    row = torch.arange(12.0)
    return [
        (case(row, samples=2), tensor([0, 5, 10])),  # 6 would meet two columns only
        (case(row.view(3, 4).T, samples=2), tensor([0, 5, 10])),
        (case(row, samples=12), row),
        (case(torch.zeros(0, 3)), torch.zeros(0)),
    ]


def pairs_of_gaussians() -> list[Case]:
    """With equal means, and equal variances, among them."""
    p = gaussians([0.3, -1.2, 2.0, 0.0, 5.0], [1.0, 0.25, 2.25, 1.0, 0.01])
    q = gaussians([0.0, -1.2, 0.5, 0.7, -5.0], [1.44, 1.0, 2.25, 0.49, 4.0])
    return [case(p, q), case(q, p)]


def wasserstein_cases() -> list[Case]:
    p, q = gaussians([1.0, -2.0, 0.0], [0.0, 1.0, 0.0]), gaussians([-1.0, 3.0, 0.0], [0.25, 0.0, 0.0])
    return [*pairs_of_gaussians(), case(p, q)]


PAIRS = {
    "the same": (1, 4, 1, 4),
    "apart": (1, 4, 4, 4),
    "narrower": (1, 4, 1, 1),
    "q constant": (1, 4, 4, 0),
    "p constant": (1, 0, 1, 1),
    "both constant": (1, 0, 4, 0),
    "the same constant": (1, 0, 1, 0),
    "no mean": (nan, 1, 0, 1),
    "no mean, and q constant": (nan, 1, 0, 0),
    "no variance": (0, 1, 0, nan),
}


def of_pairs(*expected: float) -> list[Known]:
    """Of mean and variance of p, and of q."""
    mu, var, mu_q, var_q = zip(*PAIRS.values(), strict=True)
    return [(case(gaussians(mu, var), gaussians(mu_q, var_q)), tensor(expected))]


def w1_known() -> list[Known]:
    fold = math.sqrt(2 / math.pi)  # E|Z|
    aside = 2 * fold * math.exp(-9 / 8) + 3 * math.erf(3 / math.sqrt(8))  # E|3 + 2 Z|
    return of_pairs(0, 3, fold, aside, fold, 3, 0, nan, nan, nan)


def w2_known() -> list[Known]:
    return of_pairs(0, 3, 1, math.sqrt(13), 1, 3, 0, nan, nan, nan)


def kl_known() -> list[Known]:
    return of_pairs(0, 9 / 8, (3 - math.log(4)) / 2, inf, inf, nan, nan, nan, nan, nan)


def gap_known() -> list[Known]:
    return of_pairs(0, 1.5, 0, inf, 0, inf, nan, nan, nan, nan)


def effective_rank_known() -> list[Known]:
    line = torch.outer(normal(9), normal(4, seed=1)) + 3
    two = tensor([[3, 0], [-3, 0], [0, 1], [0, -1]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))  # of singular values 3 : 1
    spoilt = torch.where(torch.eye(4) > 0, inf, 1.0)
    return [
        *((case(spread_over(k, 6)), tensor(float(k))) for k in range(1, 7)),
        *((case(spread_over(k, 20)), tensor(float(k))) for k in (1, 5)),  # fewer rows than features
        (case(line), tensor(1.0)),
        (case(two), tensor(math.exp(entropy))),
        (case(torch.full((7, 5), 0.1, dtype=torch.float64)), tensor(nan)),
        (case(torch.full((7, 5), 0.1)), tensor(nan)),
        (case(normal(1, 5)), tensor(nan)),
        (case(torch.zeros(0, 5)), tensor(nan)),
        (case(spoilt), tensor(nan)),
        (case(spoilt * nan), tensor(nan)),
    ]


def norms_known() -> list[Known]:
    half = torch.full((30, 30), 300.0, dtype=torch.float16)  # its squares are more than float16 has
    return [
        (
            case([tensor([3, 4]), tensor([[-5]]), tensor(2.0), torch.zeros(2, 2), torch.zeros(0)]),
            tensor([5, 5, 2, 0, 0]),
        ),
        (case([torch.tensor([3, 4])]), tensor([5])),
        (case([half]), tensor([9000])),
        (case([half, tensor([3, 4]), torch.ones(4)]), tensor([9000, 5, 2])),
        (case([tensor([1, nan]), tensor([1, -inf])]), tensor([nan, inf])),
        (case([]), torch.zeros(0)),
    ]


def ratio_known() -> list[Known]:
    a, b = tensor([1, 1, 0, 0, nan, 1, inf]), tensor([4, 0, 2, 0, 1, nan, 1])
    return [(case(a, b), tensor([0.25, nan, 0, nan, nan, nan, inf]))]


def shift_known() -> list[Known]:
    g = tensor([3, 4])
    right_angle = tensor([-4, 3])
    zero = torch.zeros(2)
    return [
        (case([g], [g]), (tensor(0.0), tensor(0.0), tensor(1.0))),
        (case([g], [-g]), (tensor(10.0), tensor(2.0), tensor(-1.0))),
        (case([g], [3 * g]), (tensor(10.0), tensor(2.0), tensor(1.0))),
        (case([g], [right_angle]), (tensor(50**0.5), tensor(2**0.5), tensor(0.0))),
        (case([g[:1], g[1:]], [right_angle[:1], g[1:]]), (tensor(7.0), tensor(1.4), tensor(4 / 5 / 32**0.5))),
        (case([zero], [g]), (tensor(5.0), tensor(nan), tensor(nan))),
        (case([g], [zero]), (tensor(5.0), tensor(1.0), tensor(nan))),
        (case([zero], [zero]), (tensor(0.0), tensor(nan), tensor(nan))),
        (case([g], [g * nan]), (tensor(nan), tensor(nan), tensor(nan))),
    ]


def loss_range_known() -> list[Known]:
    return [
        (case(tensor([2, 5, 1, 3])), tensor(4.0)),
        (case(tensor([2, 2])), tensor(0.0)),
        (case(tensor([2])), tensor(0.0)),
        (case(tensor([2, inf])), tensor(inf)),
        (case(tensor([2, nan, 1])), tensor(nan)),
    ]


def gradient_change_known() -> list[Known]:
    g = tensor([3, 4])
    return [(case(g, torch.stack([g, -g, 0 * g, g * nan, tensor([-4, 3])])), tensor([0, 10, 5, nan, 50**0.5]))]


def smoothness_known() -> list[Known]:
    g, steps = tensor([3, 4]), tensor([0.1, 0.5])
    return [
        (case(g, torch.stack([g, g]), steps), tensor(0.0)),
        (case(g, torch.stack([2 * g, 0 * g]), steps), tensor(10.0)),
        (case(g, torch.stack([g, -g]), steps), tensor(4.0)),
        (case(g, torch.stack([g, g * nan]), steps), tensor(nan)),
        (case(0 * g, torch.stack([g, g]), steps), tensor(nan)),
        (case(0 * g, torch.stack([0 * g, 0 * g]), steps), tensor(nan)),
    ]


def saturated_known() -> list[Known]:
    x = tensor([-9, -4, -3.9, 0, 3.9, 4, inf, nan])
    return [
        (case(x), tensor(0.5)),
        (case(x, low=0, high=inf), tensor(5 / 8)),
        (case(x, low=-inf, high=inf), tensor(1 / 8)),
        (case(torch.zeros(3, 0)), tensor(nan)),
    ]


def dead_known() -> list[Known]:
    x = tensor([[-1, -1, 1, nan], [-2, 1, 2, -1], [0, -1, 0, -1]])  # the first of four
    return [
        (case(x), tensor(0.25)),
        (case(x, low=-3), tensor(0.0)),
        (case(x, low=-0.5, high=0.5), tensor(0.25)),
        (case(x, axis=0), tensor(1 / 3)),
        (case(-x.abs().nan_to_num(), axis=0), tensor(1.0)),
        (case(torch.zeros(0, 3)), tensor(nan)),
        (case(torch.zeros(3, 0)), tensor(nan)),
    ]


def slope_known() -> list[Known]:
    return [
        (case(tensor([1, 3, 5])), tensor(2.0)),
        (case(tensor([1, nan, 5])), tensor(2.0)),
        (case(tensor([nan, inf, 1, -inf, 5])), tensor(2.0)),
        (case(tensor([[1, nan, 5, 7], [4, 4, 4, 4], [nan, 1, nan, nan]])), tensor([2, 0, nan])),
        (case(tensor([1, nan])), tensor(nan)),
        (case(tensor([1])), tensor(nan)),
        (case(tensor([])), tensor(nan)),
    ]


def growth_known() -> list[Known]:
    return [
        (case(tensor([8, 4, 2, 1])), tensor(2.0)),
        (case(tensor([8, 0, 2, nan])), tensor(2.0)),
        (case(tensor([1, inf, 100])), tensor(0.1)),
        (case(tensor([1, 1, 1])), tensor(1.0)),
        (case(tensor([1, 0, nan])), tensor(nan)),
    ]


def gradients() -> list[Tensor]:
    return [activations(*shape, seed=7) for shape in (*LAYOUTS.values(), (5,), ())[:-1]]


def steps_of_gradients() -> list[Case]:
    return [
        case(normal(6), normal(4, 6, seed=1), tensor([0.05, 0.1, 0.2, 0.4])),
        case(normal(1), normal(1, 1), tensor([3])),
    ]


SUBJECTS: dict[str, Subject] = {
    "moments": Subject(
        metrics.moments,
        twins.moments,
        of_activations,
        moments_known,
        {"torch.var_mean": Oracle(twins.moments_by_torch), "numpy.var": Oracle(twins.moments_by_numpy)},
        tolerance=1e-13,
    ),
    "merge": Subject(
        metrics.merge,
        twins.merge,
        merge_cases,
        merge_known,
        {"numpy.average": Oracle(twins.merge_by_numpy)},
        tolerance=1e-12,
    ),
    "spread_between": Subject(metrics.spread_between, twins.spread_between, spread_cases, spread_known),
    "percentiles": Subject(
        metrics.percentiles,
        twins.percentiles,
        percentiles_cases,
        percentiles_known,
        {
            "torch.quantile": Oracle(twins.percentiles_by_torch),
            "numpy.percentile": Oracle(twins.percentiles_by_numpy),
        },
    ),
    "sampled": Subject(metrics.sampled, twins.sampled, sampled_cases, sampled_known, returns=same, tolerance=0.0),
    "rank_error": Subject(
        metrics.rank_error,
        twins.rank_error,
        lambda: [*(case(n) for n in (1, 100, 1 << 14)), case(50, 0.0), case(50, confidence=0.9), case(10**6, 1 - 1e-9)],
        lambda: [(case(2, 1 - 2 / math.e), tensor(50.0)), (case(200, 1 - 2 / math.e), tensor(5.0))],
        dtypes=(torch.float64,),
        returns=None,
    ),
    "w1": Subject(
        metrics.w1,
        twins.w1,
        wasserstein_cases,
        w1_known,
        {
            "scipy.integrate.quad": Oracle(twins.w1_by_integral, 1e-6),
            "scipy.stats.wasserstein_distance": Oracle(twins.w1_by_scipy, 2e-3),
        },
        dtypes=FULL,
        returns=same,
        tolerance=2e-6,  # of the twin's integral
    ),
    "w2": Subject(
        metrics.w2,
        twins.w2,
        wasserstein_cases,
        w2_known,
        {"numpy.linalg.eigvals": Oracle(twins.w2_by_matrices, 1e-6)},
        dtypes=FULL,
        returns=same,
    ),
    "kl": Subject(
        metrics.kl,
        twins.kl,
        pairs_of_gaussians,
        kl_known,
        {"torch.distributions.kl_divergence": Oracle(twins.kl_by_torch)},
        dtypes=FULL,
        returns=same,
    ),
    "gap": Subject(metrics.gap, twins.gap, pairs_of_gaussians, gap_known, dtypes=FULL, returns=same),
    "effective_rank": Subject(
        metrics.effective_rank,
        twins.effective_rank,
        of_activations,
        effective_rank_known,
        {"numpy.linalg.svd": Oracle(twins.effective_rank_by_svd, 1e-6)},
        tolerance=1e-6,  # what is 0 is 1e-8 once its square has been rounded
    ),
    "norms": Subject(
        metrics.norms,
        twins.norms,
        lambda: [case(gradients()), case([normal(3)])],
        norms_known,
        {"torch.linalg.vector_norm": Oracle(twins.norms_by_torch)},
        returns=at_least_float32,
    ),
    "ratio": Subject(
        metrics.ratio,
        twins.ratio,
        lambda: [case(uniform(5), uniform(5, seed=1) + 0.1)],
        ratio_known,
        {"torch.div": Oracle(torch.div)},
        dtypes=FULL,
        returns=same,
    ),
    "internal_covariate_shift": Subject(
        metrics.internal_covariate_shift,
        twins.internal_covariate_shift,
        lambda: [
            case(gradients(), [g + normal(*g.shape, seed=9) for g in gradients()]),
            case([normal(3)], [uniform(3)]),
        ],
        shift_known,
        {"torch.cosine_similarity": Oracle(twins.internal_covariate_shift_by_torch)},
    ),
    "loss_range": Subject(
        metrics.loss_range,
        twins.loss_range,
        lambda: [case(normal(8)), case(normal(1))],
        loss_range_known,
        {"numpy.ptp": Oracle(twins.loss_range_by_numpy)},
        dtypes=FULL,
        returns=same,
    ),
    "gradient_change": Subject(
        metrics.gradient_change,
        twins.gradient_change,
        lambda: [replace(one, args=one.args[:2]) for one in steps_of_gradients()],
        gradient_change_known,
        {"torch.cdist": Oracle(twins.gradient_change_by_torch)},
        dtypes=FULL,
        returns=same,
    ),
    "effective_smoothness": Subject(
        metrics.effective_smoothness,
        twins.effective_smoothness,
        steps_of_gradients,
        smoothness_known,
        dtypes=FULL,
        returns=same,
    ),
    "slope": Subject(
        metrics.slope,
        twins.slope,
        lambda: [
            case(normal(7)),
            case(1e3 + normal(2)),
            case(normal(3, 5)),
            case(tensor([1, nan, 0.5, inf, 4, -inf, 2])),
        ],
        slope_known,
        {"numpy.polyfit": Oracle(twins.slope_by_polyfit)},
    ),
    "growth": Subject(
        metrics.growth,
        twins.growth,
        lambda: [case(normal(9).exp()), case(tensor([1e-3, 4.0]))],
        growth_known,
        {"scipy.stats.linregress": Oracle(twins.growth_by_regression)},
    ),
    "saturated": Subject(
        metrics.saturated,
        twins.saturated,
        lambda: [
            case(activations(*shape), **bounds)
            for shape in LAYOUTS.values()
            for bounds in ({}, {"low": -0.5, "high": 0.5}, {"low": 0.0, "high": inf})
        ],
        saturated_known,
    ),
    "dead": Subject(
        metrics.dead,
        twins.dead,
        lambda: [*of_activations(), *of_activations(low=0.5), *of_activations(low=-0.5, high=0.25)],
        dead_known,
    ),
}
