"""Virtual batch normalization."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.norms._base import Facts, Norm, Paper, require_positive
from normzoo.norms._ranks import Group, ranks, total
from normzoo.norms._running import is_captured, over_samples
from normzoo.norms._tables import by_plane, standardize


class VirtualBatchNorm(Norm):
    """Normalizes each sample by the statistics of a fixed reference batch and of the sample itself, never of others.

    `y = weight (x - mean) / sqrt(var + eps) + bias`, with `mean` and `mean(x^2)` the averages of those of the sample
    over positions, weight 1 / (n + 1), and of the n reference samples, weight n / (n + 1); `var = mean(x^2) - mean^2`

    The first batch of training becomes the reference, and is normalized by itself alone. The paper computes the
    statistics of the reference anew with the weights of every step: `VirtualBatchNorm.refer(net, batch)` does so for
    all layers of a network, as often as its user likes; in between they are constants, to which no gradient flows. The
    text of the paper takes each sample by itself, as this layer; its authors' code takes the mean over the whole batch
    in place of the sample's. Under activation checkpointing, which repeats forward passes, call `refer` first.

    Args:
        num_features: number of channels C of the input (N, C, *).
        eps: added to the variance, in its units.
        affine: learn `weight` and `bias`, (C,) each.
        sync: take the reference from the batches of all ranks, weighted by their counts.

    Buffers `reference_mean`, `reference_var` (biased): (C,); `reference_samples`: n, 0 while there is no reference.

    Raises:
        InputError: evaluation before there is a reference batch; a reference with one value per channel; eps not above
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
        require_positive(self, eps=eps)
        self.eps = eps
        self.affine = affine
        self.sync = sync
        self.add_affine(weight=affine, bias=affine)
        self.register_buffer("reference_mean", torch.zeros(num_features))
        self.register_buffer("reference_var", torch.ones(num_features))
        self.register_buffer("reference_samples", torch.tensor(0))
        # Beside `reference_samples`, whose value a compiled graph must not read.
        self.has_reference = False

    def normalize(self, x: Tensor) -> Tensor:
        if self.has_reference:
            return by_plane(x, self.rule, weight=self.weight, bias=self.bias)[0]
        if not self.training:
            raise InputError(
                "VirtualBatchNorm is in evaluation and has no reference batch: give it one by "
                "VirtualBatchNorm.refer(net, batch), or train it, which takes the first batch."
            )
        group = ranks() if self.sync else None
        samples = total(len(x), group, x.device)
        if samples * x.shape[2:].numel() == 1:
            raise InputError(
                f"VirtualBatchNorm got an input of shape {tuple(x.shape)} for its reference batch: one value per "
                f"channel has no variance; use a first batch of more samples."
            )
        rule = partial(self.rule_of_reference, positions=x.shape[2:].numel(), group=group)
        y, mean, var = by_plane(x, rule, weight=self.weight, bias=self.bias)
        if samples > 0 and not is_captured(self.reference_mean):
            self.take(mean, var, samples)
        return y

    def rule(self, mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
        own = 1 / (self.reference_samples.to(mean.dtype) + 1)
        # The same as averages of the means and mean squares, without the square of a large mean.
        apart = mean - self.reference_mean
        var = self.reference_var + own * (var - self.reference_var) + own * (1 - own) * apart.square()
        return standardize(self.reference_mean + own * apart, var, self.eps)

    def rule_of_reference(self, mean: Tensor, var: Tensor, positions: int, group: Group) -> tuple[Tensor, ...]:
        mean, var = over_samples(mean, var, positions, group)
        return *standardize(mean, var, self.eps), mean, var

    @torch.no_grad()
    def take(self, mean: Tensor, var: Tensor, samples: int) -> None:
        """Keeps statistics (C,) of a reference batch."""
        self.reference_mean.copy_(mean)
        self.reference_var.copy_(var)
        self.reference_samples.fill_(samples)
        self.has_reference = True

    @staticmethod
    @torch.no_grad()
    def refer(net: nn.Module, batch: Tensor) -> None:
        """Makes a batch the reference of every `VirtualBatchNorm` in a network, as its weights are now.

        All other layers run in the mode they are in: call `net.eval()` before, lest they move running statistics.

        Args:
            net: takes the batch.
            batch: the reference, for example 128 samples of training.

        Raises:
            InputError: the network has no such layer. A layer that the batch does not reach keeps its reference.
        """
        before = [(m, m.training, m.has_reference) for m in net.modules() if isinstance(m, VirtualBatchNorm)]
        if not before:
            raise InputError(
                f"VirtualBatchNorm.refer got a {type(net).__name__} without any VirtualBatchNorm; give a network that "
                f"has one."
            )
        try:
            for layer, *_ in before:
                layer.training, layer.has_reference = True, False
            net(batch)
        finally:
            for layer, training, had_reference in before:
                layer.training, layer.has_reference = training, layer.has_reference or had_reference

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.has_reference = not self.reference_samples.is_meta and bool(self.reference_samples > 0)
