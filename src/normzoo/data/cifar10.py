"""CIFAR-10."""

import torchvision

from ._cifar import CIFARData


class CIFAR10(CIFARData):
    """50,000 + 10,000 photographs of 32 x 32 colour pixels, in ten classes.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009).
    """

    source = torchvision.datasets.CIFAR10
    folder = "cifar-10-batches-py"
    names = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    num_classes = 10
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
