"""Virtual batch normalization."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.norms._base import Facts, Norm, Paper
from normzoo.norms._checks import require_eps
from normzoo.norms._ops.buffers import is_positive, is_readable
from normzoo.norms._ops.ranks import Group, ranks, total
from normzoo.norms._ops.running import is_captured, over_samples
from normzoo.norms._ops.scale_shift import by_plane, standardize


class VirtualBatchNorm(Norm):
    """Normalizes each sample by the statistics of a fixed reference batch and of the sample itself.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, with `mean` and `mean(x^2)` the averages of those of the sample
    over positions, weight 1 / (n + 1), and of the n reference samples, weight n / (n + 1); `var = mean(x^2) - mean^2`

    The first batch of training becomes the reference, and is normalized by its own statistics; if they are NaN or
    infinite, the next batch takes its place. The paper computes the statistics of the reference again with the weights
    of every step: call `VirtualBatchNorm.refer(net, batch)` for all layers of a network, as often as you like; in
    between they are constants without a gradient. With activation checkpointing, which repeats forward passes, call
    `refer` first. Compiled code cannot read whether there is a reference: it relies on the last eager pass, `refer` or
    `load_state_dict`; call one of these if the buffers are filled in another way.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.
        affine: learn `weight` and `bias`, (C,) each.
        sync: take the reference from the batches of all ranks, weighted by their counts.

    Buffers `reference_mean`, `reference_var` (biased): (C,); `reference_samples`: n, 0 while there is no reference.

    Raises:
        InputError: evaluation before there is a reference batch; a reference with one value per channel; eps below
            0; an input that is not (N, C, *).

    Reference: Tim Salimans, Ian Goodfellow, Wojciech Zaremba, Vicki Cheung, Alec Radford, Xi Chen. Improved Techniques
    for Training GANs. 2016. arXiv 1606.03498, section 3.5.
    """

    facts = Facts(
        family="batch",
        formula="y = weight (x - mean) / sqrt(var + eps) + bias, moments of the sample and a reference batch",
        paper=Paper(title="Improved Techniques for Training GANs", year=2016, arxiv="1606.03498"),
        axes=("s",),
        constants=("reference_mean", "reference_var", "reference_samples"),
        takes_reference=True,
        syncs=True,
    )

    reference_mean: Tensor
    reference_var: Tensor
    reference_samples: Tensor

    def __init__(self, num_features: int, *, eps: float = 1e-5, affine: bool = True, sync: bool = False) -> None:
        super().__init__(num_features)
        require_eps(self, eps)
        self.eps = eps
        self.affine = affine
        self.sync = sync
        self.add_affine(weight=affine, bias=affine)
        self.register_buffer("reference_mean", torch.zeros(num_features))
        self.register_buffer("reference_var", torch.ones(num_features))
        self.register_buffer("reference_samples", torch.tensor(0))
        # `reference_samples > 0` when it was last read or written, for compiled code, which cannot read it.
        self.had_reference = False

    @property
    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The buffers: mean, variance, number of samples."""
        return self.reference_mean, self.reference_var, self.reference_samples

    @property
    def has_reference(self) -> bool:
        """Whether the buffers have the statistics of a batch."""
        if is_readable(self.reference_samples):
            self.had_reference = is_positive(self.reference_samples)
        return self.had_reference

    def normalize(self, x: Tensor) -> Tensor:
        if self.has_reference:
            # Second derivatives evaluate the rule again, perhaps after another `refer`.
            reference = self.reference if torch.compiler.is_compiling() else [b.clone() for b in self.reference]
            return by_plane(x, partial(self.rule, reference=reference), weight=self.weight, bias=self.bias)[0]
        if not self.training:
            raise InputError(
                "VirtualBatchNorm is in evaluation and has no reference batch: give it one by "
                "VirtualBatchNorm.refer(net, batch), or train it, which takes the first batch."
            )
        group = ranks() if self.sync else None
        samples = total(x.shape[0], group, x.device)
        if samples * math.prod(x.shape[2:]) == 1:
            raise InputError(
                f"VirtualBatchNorm got an input of shape {tuple(x.shape)} for its reference batch: one value per "
                f"channel has no variance; use a first batch of more samples."
            )
        rule = partial(self.rule_of_reference, positions=math.prod(x.shape[2:]), group=group)
        y, mean, var = by_plane(x, rule, weight=self.weight, bias=self.bias)
        if samples > 0 and not is_captured(self.reference_mean):
            self.take(mean, var, samples)
        return y

    def rule(self, mean: Tensor, var: Tensor, reference: Sequence[Tensor]) -> tuple[Tensor, ...]:
        reference_mean, reference_var, n = reference
        # NaN without a reference, for compiled code.
        own = torch.where(n > 0, 1 / (n.to(mean.dtype) + 1), math.nan)
        # The same as averages of the means and mean squares, without the square of a large mean.
        apart = mean - reference_mean
        var = reference_var + own * (var - reference_var) + own * (1 - own) * apart.square()
        return standardize(reference_mean + own * apart, var, self.eps)

    def rule_of_reference(self, mean: Tensor, var: Tensor, positions: int, group: Group) -> tuple[Tensor, ...]:
        mean, var = over_samples(mean, var, positions, group)
        return *standardize(mean, var, self.eps), mean, var

    @torch.no_grad()
    def take(self, mean: Tensor, var: Tensor, samples: int) -> None:
        """Stores the statistics (C,) of a reference batch; one that is empty or not finite is ignored."""
        finite = (mean + var).isfinite().all()
        self.reference_mean.copy_(torch.where(finite, mean, self.reference_mean))
        self.reference_var.copy_(torch.where(finite, var, self.reference_var))
        self.reference_samples.copy_(samples * finite)
        readable = is_readable(self.reference_samples)
        self.had_reference = is_positive(self.reference_samples) if readable else samples > 0

    @staticmethod
    @torch.no_grad()
    def refer(net: nn.Module, batch: Tensor) -> None:
        """Makes a batch the reference of every `VirtualBatchNorm` in a network, with its present weights.

        All other layers run in their present mode: call `net.eval()` before, so that running statistics do not change.
        If the network raises, all layers keep their references, as does a layer that the batch does not reach.

        Args:
            net: takes the batch.
            batch: the reference, for example 128 samples of training.

        Raises:
            InputError: the network has no such layer, or one of them receives NaN or infinite values.
        """
        layers = [layer for layer in net.modules() if isinstance(layer, VirtualBatchNorm)]
        if not layers:
            raise InputError(
                f"VirtualBatchNorm.refer got a {type(net).__name__} without any VirtualBatchNorm; give a network that "
                f"has one."
            )
        before = [(layer.training, [b.clone() for b in layer.reference]) for layer in layers]
        reached: list[nn.Module] = []
        hooks = [
            layer.register_forward_hook(lambda layer, _, y: reached.append(layer) if y.numel() > 0 else None)
            for layer in layers
        ]
        done = False
        try:
            for layer in layers:
                layer.training = True
                layer.take(*layer.reference[:2], samples=0)
            net(batch)
            if not all(layer.has_reference for layer in layers if layer in reached):
                raise InputError(
                    f"VirtualBatchNorm.refer got a batch of shape {tuple(batch.shape)} that is NaN or infinite at the "
                    f"input of a VirtualBatchNorm; give a batch of finite values, or look for the weights that are not."
                )
            done = True
        finally:
            for hook in hooks:
                hook.remove()
            for layer, (training, (mean, var, samples)) in zip(layers, before, strict=True):
                layer.training = training
                if not done or not layer.has_reference:
                    layer.take(mean, var, int(samples))

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.had_reference = self.has_reference
