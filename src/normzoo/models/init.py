"""Initialization: each class fills the weight of a linear or convolutional layer, and sets its bias to zero."""

import math
from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from normzoo.errors import InputError


class Init(ABC):
    """Initializes a layer in place: the weight by the subclass, the bias with zeros."""

    def __call__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self.fill(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

    @abstractmethod
    def fill(self, weight: Tensor) -> None:
        """Fills a weight (C, I, *) in place."""


class Kaiming(Init):
    """Normal with standard deviation `gain / sqrt(fan)`.

    Args:
        gain: sqrt(2) keeps the variance through ReLU layers, 1 through linear ones.
        mode: "fan_in" keeps the variance of activations, "fan_out" that of gradients.

    Reference: Kaiming He et al. Delving Deep into Rectifiers. 2015. arXiv 1502.01852, equations 10 and 14.
    """

    def __init__(self, gain: float = math.sqrt(2), mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
        if mode not in ("fan_in", "fan_out"):
            raise InputError(f"Kaiming(mode={mode!r}): the mode must be 'fan_in' or 'fan_out'.")
        self.gain, self.mode = gain, mode

    def fill(self, weight: Tensor) -> None:
        fan = weight[0].numel() if self.mode == "fan_in" else weight[:, 0].numel()
        nn.init.normal_(weight, std=self.gain / math.sqrt(fan))


class Xavier(Init):
    """Normal with standard deviation `gain sqrt(2 / (fan_in + fan_out))`.

    Args:
        gain: 1 for sigmoid and linear layers, 5/3 for tanh.

    Reference: Xavier Glorot, Yoshua Bengio. Understanding the difficulty of training deep feedforward neural networks.
    2010, equation 12.
    """

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def fill(self, weight: Tensor) -> None:
        nn.init.xavier_normal_(weight, self.gain)


class Normal(Init):
    """Normal with a given standard deviation, whatever the fan.

    Args:
        std: the standard deviation; the batch normalization paper uses "small random Gaussian values".
    """

    def __init__(self, std: float = 0.1) -> None:
        if not std >= 0:
            raise InputError(f"Normal(std={std}): a standard deviation is at least 0; try 0.1.")
        self.std = std

    def fill(self, weight: Tensor) -> None:
        nn.init.normal_(weight, std=self.std)


class Orthogonal(Init):
    """A random orthogonal matrix, times a gain, of the weight flattened to (C, fan_in).

    Args:
        gain: sqrt(2) for ReLU layers, 1 for linear ones.

    Reference: Andrew Saxe et al. Exact solutions to the nonlinear dynamics of learning in deep linear neural networks.
    2013. arXiv 1312.6120.
    """

    def __init__(self, gain: float = math.sqrt(2)) -> None:
        self.gain = gain

    def fill(self, weight: Tensor) -> None:
        nn.init.orthogonal_(weight, self.gain)


class TorchDefault(Init):
    """Keeps torch's own initialization: uniform within `1 / sqrt(fan_in)`."""

    def __call__(self, layer: nn.Linear | nn.Conv2d) -> None:
        pass

    def fill(self, weight: Tensor) -> None:
        pass
