"""Fashion-MNIST."""

import torchvision

from ._idx import IDXData


class FashionMNIST(IDXData):
    """60,000 + 10,000 articles of clothing of 28 x 28 grey pixels, in ten classes: MNIST's format, but harder.

    Reads the files of the Debian package dataset-fashion-mnist where it is installed.

    Reference: Xiao, Rasul and Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms (2017), arXiv 1708.07747.
    """

    source = torchvision.datasets.FashionMNIST
    folder = "FashionMNIST/raw"
    elsewhere = ("/usr/share/datasets/fashion-mnist",)
    remedy = ", or on Debian: apt install dataset-fashion-mnist"
    mean = (0.2860,)
    std = (0.3530,)
