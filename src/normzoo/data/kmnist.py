"""Kuzushiji-MNIST."""

import torchvision

from ._idx import IDXData


class KMNIST(IDXData):
    """60,000 + 10,000 cursive Japanese characters of 28 x 28 grey pixels, in ten classes: MNIST's format, but harder.

    Reference: Clanuwat et al., Deep Learning for Classical Japanese Literature (2018), arXiv 1812.01718.
    """

    source = torchvision.datasets.KMNIST
    folder = "KMNIST/raw"
    mean = (0.1918,)
    std = (0.3483,)
