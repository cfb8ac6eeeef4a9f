"""At initialization the gradient of a deep network with BatchNorm grows from layer to layer, whatever the weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normzoo.compare.claims._claim import Claim, Rule, Values
from normzoo.compare.claims._run import Run
from normzoo.data import FashionMNIST
from normzoo.metrics import growth
from normzoo.models import MLP, Kaiming
from normzoo.norms import BatchNorm, LayerNorm, NoNorm, Norm

GAINS = (0.7, 1.0, 1.4)
GROWTH = "growth per layer, {} at gain {}"
SPREAD = "spread of BatchNorm's growth over gains"


def measure(seed: int, runs: Sequence[Run]) -> Values:
    """The factor by which the gradient grows per layer, for each norm and gain."""
    images, labels = batch(256)
    found = {
        (norm.__name__, gain): growth_of(norm, gain, seed, images, labels)
        for norm in (BatchNorm, LayerNorm, NoNorm)
        for gain in GAINS
    }
    of_batch_norm = [one for (norm, _), one in found.items() if norm == "BatchNorm"]
    return {GROWTH.format(*key): one for key, one in found.items()} | {SPREAD: max(of_batch_norm) - min(of_batch_norm)}


def batch(size: int) -> tuple[Tensor, Tensor]:
    """The first training images of Fashion-MNIST, and their labels."""
    data = FashionMNIST()
    data.prepare_data()
    train, _ = data.read()
    return data.normalize(train.images[:size]), train.labels[:size]


def growth_of(norm: type[Norm], gain: float, seed: int, images: Tensor, labels: Tensor) -> float:
    """The growth per layer in a network of 30 ReLU layers whose weights have `gain` times He's deviation."""
    torch.manual_seed(seed)
    net = MLP((1, 28, 28), 10, hidden=[256] * 30, norm=norm, init=Kaiming(gain * math.sqrt(2)))
    outputs: list[Tensor] = []
    for block in net.hidden:
        block.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    loss = nn.functional.cross_entropy(net(images), labels)
    gradients = torch.autograd.grad(loss, outputs)
    return growth(torch.stack([gradient.norm() for gradient in gradients])).item()


CLAIM = Claim(
    name="gradient-explosion",
    paper="A Mean Field Theory of Batch Normalization (2019, arXiv 1902.08129)",
    place="section 3; appendix",
    statement="In deep networks with batch normalization and no skip connections the gradient grows exponentially with "
    "depth, and no choice of the variance of the weights prevents it.",
    figure="sqrt(pi / (pi - 1)) = 1.211 per layer for ReLU, in the limit of wide layers and large batches",
    setting="30 x 256 ReLU units at initialization, weights with 0.7, 1 and 1.4 times He's deviation, a batch of 256 "
    "images of Fashion-MNIST; nothing is trained.",
    grids={},
    measure=measure,
    rules=(
        *(Rule(GROWTH.format("BatchNorm", gain), least=1.17, most=1.24) for gain in GAINS),
        Rule(SPREAD, most=0.005),
        *(Rule(GROWTH.format("LayerNorm", gain), least=0.97, most=1.03) for gain in GAINS),
        *(Rule(GROWTH.format("NoNorm", gain), least=gain - 0.03, most=gain + 0.03) for gain in GAINS),
    ),
)
