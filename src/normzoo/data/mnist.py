"""MNIST."""

import torchvision

from ._idx import IDXData


class MNIST(IDXData):
    """60,000 + 10,000 handwritten digits of 28 x 28 grey pixels.

    Reference: LeCun, Bottou, Bengio and Haffner, Gradient-Based Learning Applied to Document Recognition (1998).
    """

    source = torchvision.datasets.MNIST
    folder = "MNIST/raw"
    mean = (0.1307,)
    std = (0.3081,)
