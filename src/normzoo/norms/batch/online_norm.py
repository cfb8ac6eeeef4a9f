"""Online normalization: running statistics that change with each sample."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from normzoo.norms._base import Facts, Paper
from normzoo.norms._checks import require_number
from normzoo.norms._ops.ranks import Group, all_reduce, samples_before
from normzoo.norms._ops.running import RunningStatistics
from normzoo.norms._ops.scale_shift import standardize
from normzoo.norms.batch._feedback import Pass, averaged_over, by_plane_apart, with_feedback


class OnlineNorm(RunningStatistics):
    """Normalizes each sample by running statistics of all samples before it, in the batch and before the batch.

    `y_t = weight z_t + bias`, `z_t = (x_t - mean_{t-1}) / sqrt(var_{t-1} + eps)` for sample t of the stream of samples

    With m_t and s_t the mean and biased variance of a channel of sample t over positions, and a = `forward_decay`::

        var_t  = a var_{t-1}  + (1 - a) s_t + a (1 - a) (m_t - mean_{t-1})^2
        mean_t = a mean_{t-1} + (1 - a) m_t

    The gradient is not the derivative, but a control process: it keeps the gradients of the stream orthogonal to z and
    to 1, as those of batch normalization are within a batch. With g_t = weight dy_t, averages E
    over positions, and b = `backward_decay`::

        g'_t = g_t - (1 - b) v_{t-1} z_t,                              v_t = v_{t-1} + E[g'_t z_t]
        dx_t = g'_t / sqrt(var_{t-1} + eps) - (1 - b) u_{t-1},         u_t = u_{t-1} + E[dx_t]

    Each of the four recurrences is linear, `s_t = decay_t s_{t-1} + input_t`, and takes log2(N) steps for N samples.
    Against the growth of errors, the paper scales the whole sample afterwards, and its authors' code by default clamps
    y to [-5, 5]; neither is part of this layer.

    With activation checkpointing, run backward after each forward pass: a repeated pass starts from the statistics
    before the last one.

    Args:
        num_features: number of channels C of the input (N, C, *).
        forward_decay: a, in [0, 1): the weight of the samples before the present one.
        backward_decay: b, in [0, 1).
        eps: added to the variance, in its units.
        affine: learn `weight` and `bias`, (C,) each.
        sync: the stream is the samples of all ranks, one rank after the other.

    Buffers `running_mean`, `running_var`, the errors `v` and `u` that the gradient controls: (C,) each.

    Raises:
        InputError: an argument out of range; an input that is not (N, C, *).

    Reference: Vitaliy Chiley, Ilya Sharapov, Atli Kosson, Urs Koster, Ryan Reece, Sofia Samaniego de la Fuente, Vishal
    Subbiah, Michael James. Online Normalization for Training Neural Networks. 2019. arXiv 1905.05894, section 3.
    """

    facts = Facts(
        family="batch",
        formula="y_t = weight z_t + bias, z_t by mean and variance of the samples before t",
        paper=Paper(title="Online Normalization for Training Neural Networks", year=2019, arxiv="1905.05894"),
        axes=("N", "s"),
        stateful=True,
        train_differs=True,
        syncs=True,
        folds=True,
        exceptions={
            "gradcheck": "the paper's gradient is a control process, not the derivative of its forward pass",
            "forward-mode": "the paper's gradient is a control process, not the derivative of its forward pass",
        },
    )

    running_mean: Tensor
    running_var: Tensor
    v: Tensor
    u: Tensor

    averages_batches = False

    def __init__(
        self,
        num_features: int,
        *,
        forward_decay: float = 0.999,
        backward_decay: float = 0.99,
        eps: float = 1e-5,
        affine: bool = True,
        sync: bool = False,
    ) -> None:
        # momentum=1: the statistics after a batch replace those before it.
        super().__init__(num_features, eps=eps, momentum=1.0, affine=affine, sync=sync)
        require_number(self, 0, below=1, forward_decay=forward_decay, backward_decay=backward_decay)
        self.forward_decay, self.backward_decay = forward_decay, backward_decay
        self.register_buffer("v", torch.zeros(num_features))
        self.register_buffer("u", torch.zeros(num_features))

    def normalize_by_batch(self, x: Tensor, group: Group) -> Tensor:
        before, samples = samples_before(x.shape[0], group, x.device)
        rule = partial(
            self.rule,
            before=self.before(),
            buffers=(self.v, self.u),
            positions=math.prod(x.shape[2:]),
            gathered=partial(gathered, before=before, samples=samples, group=group),
            own=slice(before, before + x.shape[0]),
            group=group,
            once=Pass(self.v, self.u),
        )
        y, mean, var = by_plane_apart(x, rule, weight=self.weight, bias=self.bias)
        self.move(samples, running_mean=mean, running_var=var)
        return y

    def rule(
        self,
        mean: Tensor,
        var: Tensor,
        *,
        before: dict[str, Tensor],
        buffers: tuple[Tensor, Tensor],
        positions: int,
        gathered: Callable[[Tensor], Tensor],
        own: slice,
        group: Group,
        once: Pass,
    ) -> tuple[Tensor, ...]:
        a, control = self.forward_decay, 1 - self.backward_decay

        def gradient(
            d_scale: Tensor,
            d_shift: Tensor,
            mean: Tensor,
            var: Tensor,
            scale: Tensor,
            shift: Tensor,
            *errors: Tensor,
        ) -> tuple[Tensor, ...]:
            _, _, v_before, u_before = errors
            z = scale * mean + shift
            zz = gathered(scale.square() * var + z.square())
            gz = gathered((d_scale * scale + d_shift * shift) / positions)
            vs, v = states(v_before, gz, 1 - control * zz)
            vs = vs[own]
            us, u = states(u_before, gathered(scale * (d_shift / positions - control * vs * z)), self.backward_decay)
            us = us[own]
            return -control * vs * scale.square(), -control * (vs * scale * shift + us), v, u

        means, all_vars = gathered(mean), gathered(var)
        mean_before, mean_after = states(before["running_mean"], (1 - a) * means, a)
        inputs = (1 - a) * all_vars + a * (1 - a) * (means - mean_before).square()
        var_before, var_after = states(before["running_var"], inputs, a)
        tables = standardize(mean_before[own], var_before[own], self.eps)
        given = *buffers, before["v"], before["u"]
        tables = with_feedback(mean, var, *tables, positions, averaged_over(group, gradient), once, *given)
        return *tables, mean_after, var_after


def states(start: Tensor, inputs: Tensor, decay: Tensor | float) -> tuple[Tensor, Tensor]:
    """The states of `s_t = decay_t s_{t-1} + inputs_t` before each of N inputs, (N, C), and the last one, (C,).

    A parallel scan: each step combines every stretch of inputs with the equally long one before it, in log2(N) steps.
    """
    s = torch.cat([start.to(inputs.dtype).unsqueeze(0), inputs])
    if isinstance(decay, Tensor):
        decay = F.pad(decay, (0, 0, 1, 0), value=1.0)
    for doublings in range(math.ceil(math.log2(len(s))) if len(s) > 1 else 0):
        shift = (0, 0, 2**doublings, 0)
        stretch = len(s) - 2**doublings
        s = s + decay * F.pad(s[:stretch], shift)
        decay = decay * F.pad(decay[:stretch], shift) if isinstance(decay, Tensor) else decay * decay
    return s[:-1], s[-1]


def gathered(table: Tensor, *, before: int, samples: int, group: Group) -> Tensor:
    """The table of the samples of all ranks, in order."""
    return all_reduce(F.pad(table, (0, 0, before, samples - before - table.shape[0])), group)
