"""Image data sets, held in memory, and the augmentations for whole batches of them.

One file per data set. `ImageData` is what they share and what a data set of your own extends.
"""

from ._base import ImageData
from ._images import Images
from .augment import RandomFlip, RandomShift
from .cifar10 import CIFAR10
from .cifar100 import CIFAR100
from .digits import Digits
from .fashion_mnist import FashionMNIST
from .kmnist import KMNIST
from .mnist import MNIST

__all__ = [
    # needs nothing but scikit-learn
    "Digits",
    # 28 x 28, grey
    "MNIST",
    "KMNIST",
    "FashionMNIST",
    # 32 x 32, colour
    "CIFAR10",
    "CIFAR100",
    # augmentations: one random draw per image
    "RandomFlip",
    "RandomShift",
    # for a data set of your own
    "ImageData",
    "Images",
]
