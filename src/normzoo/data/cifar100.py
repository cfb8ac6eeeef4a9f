"""CIFAR-100."""

import torchvision

from ._cifar import CIFARData


class CIFAR100(CIFARData):
    """50,000 + 10,000 photographs of 32 x 32 colour pixels, in a hundred classes.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009).
    """

    source = torchvision.datasets.CIFAR100
    folder = "cifar-100-python"
    names = ("train", "test", "meta")
    num_classes = 100
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
