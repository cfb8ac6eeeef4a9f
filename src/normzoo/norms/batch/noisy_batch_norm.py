"""Batch normalization followed by noise, whose distribution changes at every step."""

import math
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_number
from normzoo.norms._ops.ranks import Group, samples_before, total
from normzoo.norms._ops.running import RunningStatistics, over_samples
from normzoo.norms._ops.scale_shift import by_plane, standardize
from normzoo.norms._ops.tensors import at_least_float32


class NoisyBatchNorm(RunningStatistics):
    """Scales and shifts the output of batch normalization at random, so its distributions are not stable.

    `y = s (weight (x - mean) / sqrt(var + eps) + bias) + m`, in training, with noise s and m

    The parameters of the noise change at every step, for each channel: `mu ~ U(-n_mu, n_mu)` and
    `sigma ~ U(1, n_sigma)`. Within a step, for each channel of each sample, `m ~ U(mu - r_mu, mu + r_mu)` and
    `s ~ N(sigma, r_sigma^2)`. The paper's noise is per neuron, and not defined for convolutions; here all positions of
    a channel of a sample share their noise. There is no noise in evaluation or in a frozen layer.

    Args:
        num_features: number of channels C of the input (N, C, *).
        n_mu: bound of a channel's mean shift, at least 0.
        n_sigma: upper bound of a channel's mean scale, at least 1.
        r_mu: largest distance of a sample's shift from the channel's, at least 0.
        r_sigma: standard deviation of a sample's scale around the channel's, at least 0.
        eps: added to the variance, in its units.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; None for the average of all batches.
        affine: learn `weight` and `bias`, (C,) each.
        track_running_stats: keep `running_mean` and `running_var` (unbiased), (C,) each, for evaluation.
        sync: take the statistics over the batches of all ranks, weighted by their counts, and the noise from the first.

    Raises:
        InputError: one value per channel in training; an argument out of range; an input that is not (N, C, *).

    Reference: Shibani Santurkar, Dimitris Tsipras, Andrew Ilyas, Aleksander Madry. How Does Batch Normalization Help
    Optimization? 2018. arXiv 1805.11604, section 2.1 and the algorithm in the appendix.
    """

    facts = Facts(
        family="batch",
        formula="y = s (weight (x - mean) / sqrt(var + eps) + bias) + m, with noise s and m",
        paper=Paper(title="How Does Batch Normalization Help Optimization?", year=2018, arxiv="1805.11604"),
        axes=("N", "s"),
        centres=True,
        scales=True,
        zero_mean=False,
        unit_square=False,
        stateful=True,
        random=True,
        train_differs=True,
        syncs=True,
        folds=True,
    )

    def __init__(
        self,
        num_features: int,
        *,
        n_mu: float = 0.5,
        n_sigma: float = 1.25,
        r_mu: float = 0.1,
        r_sigma: float = 0.1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        sync: bool = False,
    ) -> None:
        super().__init__(
            num_features, eps=eps, momentum=momentum, affine=affine, track_running_stats=track_running_stats, sync=sync
        )
        # The smallest values mean no noise.
        require_number(self, 0, n_mu=n_mu, r_mu=r_mu, r_sigma=r_sigma)
        require_number(self, 1, n_sigma=n_sigma)
        self.n_mu, self.n_sigma, self.r_mu, self.r_sigma = n_mu, n_sigma, r_mu, r_sigma

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        count = total(x.numel() // x.shape[1], group, x.device)
        self.require_several(count, x)
        s, m = self.noise(x, group) if self.training else (None, None)
        rule = partial(self.rule, positions=math.prod(x.shape[2:]), group=group)
        y, mean, var = by_plane(x, rule, s, m, self.weight, self.bias)
        self.update(mean, var, count)
        return y

    def rule(
        self,
        mean: Tensor,
        var: Tensor,
        s: Tensor | None,
        m: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        positions: int,
        group: Group,
    ) -> tuple[Tensor, ...]:
        mean, var = over_samples(mean, var, positions, group)
        scale, shift = standardize(mean, var, self.eps)
        if weight is not None:
            scale, shift = weight * scale, weight * shift
        if bias is not None:
            shift = shift + bias
        if s is not None and m is not None:
            scale, shift = s * scale, s * shift + m
        return scale, shift, mean, var

    @torch.no_grad()
    def noise(self, x: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        """Scale and shift of every channel of every sample of x: two tables (N, C)."""
        before, samples = samples_before(x.shape[0], group, x.device)
        drawn = (drawn_in_graph if torch.compiler.is_compiling() else draw)(samples, x.shape[1], x.device)
        for table in drawn if group is not None else ():
            # All ranks use the numbers of the first, which drew for the whole batch: independent samples.
            dist.broadcast(table, dist.get_global_rank(group, 0), group=group)
        law, uniform, normal = (table.to(at_least_float32(x).dtype) for table in drawn)
        mu, sigma = self.n_mu * (2 * law[0] - 1), 1 + (self.n_sigma - 1) * law[1]
        own = slice(before, before + x.shape[0])
        return sigma + self.r_sigma * normal[own], mu + self.r_mu * (2 * uniform[own] - 1)


def draw(samples: int, channels: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Uniform (2, C) and (N, C), and normal (N, C); float32, so the numbers do not depend on the dtype of the input."""
    uniform = torch.rand(2 + samples, channels, device=device)
    return uniform[:2].clone(), uniform[2:].clone(), torch.randn(samples, channels, device=device)


# Compiled code has its own random number generator; a custom operator uses torch's.
drawn_in_graph = torch.library.custom_op(
    "normzoo::draw", draw, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)


@drawn_in_graph.register_fake
def _(samples: int, channels: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    law, table = torch.empty(2, channels, device=device), torch.empty(samples, channels, device=device)
    return law, table, torch.empty_like(table)
