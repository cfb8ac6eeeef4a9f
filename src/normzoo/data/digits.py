"""The digits that ship with scikit-learn: data for a first run, without a network or a file."""

import torch

from ._base import ImageData
from ._images import Images


class Digits(ImageData):
    """1,797 handwritten digits of 8 x 8 grey pixels, from scikit-learn. `root` and `download` have no use here.

    scikit-learn's pixels count 0 to 16 and become `(255 x + 8) // 16`, the nearest of 0 to 255.

    There is no official split. Every fifth image of each digit is a test image (360 in all), whatever `split_seed` is:
    scores of runs with different splits stay comparable, and no run has trained on what another is tested on.

    Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (1998), UCI Machine Learning Repository.
    """

    input_shape = (1, 8, 8)
    num_classes = 10
    mean = (0.3058,)
    std = (0.3761,)
    train_size = 1437
    default_val_size = 180

    def read(self) -> tuple[Images, Images]:
        """From the installed scikit-learn."""
        from sklearn.datasets import load_digits  # half a second that the other data sets need not pay

        digits = load_digits()
        pixels = torch.from_numpy(digits.images).long()
        images = ((255 * pixels + 8) // 16).to(torch.uint8).unsqueeze(-1)
        labels = torch.from_numpy(digits.target).long()
        # Sorted by digit, in the order of the file: no random numbers, whose sequence a new version might change.
        by_digit = labels.argsort(stable=True)
        is_test = torch.zeros(len(labels), dtype=torch.bool)
        is_test[by_digit[::5]] = True
        return Images(images[~is_test], labels[~is_test]), Images(images[is_test], labels[is_test])
