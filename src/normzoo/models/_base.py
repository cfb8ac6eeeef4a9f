"""The base class of networks: images in, logits out, and a check of the shape of images."""

from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.norms._ops.tensors import is_traced


class Network(nn.Module):
    """A classifier of images: (N, C, H, W) in, logits (N, num_classes) out.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.

    Raises:
        InputError: a size is not positive, or in `forward` an image has another shape.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        name = type(self).__name__
        if input_shape is None or num_classes is None:  # from the command line, with a data set that does not say
            raise InputError(
                f"{name}(input_shape={input_shape}, num_classes={num_classes}): the sizes are unknown: give "
                f"your LightningDataModule the attributes input_shape, such as (1, 28, 28), and num_classes, or pass "
                f"them to the network."
            )
        shape = tuple(input_shape)
        if len(shape) != 3 or any(size < 1 for size in shape):
            raise InputError(f"{name}(input_shape={shape}): an image is (C, H, W), each at least 1, as (3, 32, 32).")
        if num_classes < 1:
            raise InputError(f"{name}(num_classes={num_classes}): a classifier has at least 1 class; digits have 10.")
        self.input_shape = shape
        self.num_classes = num_classes

    def check(self, images: Tensor, *, any_size: bool) -> None:
        """Raises `InputError` for images of another shape than the network was built for.

        Args:
            images: (N, C, H, W).
            any_size: whether only C matters.
        """
        if is_traced():
            return
        got, want = tuple(images.shape[1:]), self.input_shape
        # Of any size: H and W are not even compared, as an exported program would keep the outcome.
        if (len(got) != 3 or got[0] != want[0]) if any_size else got != want:
            size = "H, W" if any_size else f"{want[1]}, {want[2]}"
            raise InputError(
                f"{type(self).__name__} got images of shape {got}; it was built for ({want[0]}, {size}): build it with "
                f"input_shape={got}, or resize the images."
            )

    def require_size(self, halvings: int) -> None:
        """Raises `InputError` unless every halving of the image has at least two pixels to halve."""
        smallest = 2**halvings
        if min(self.input_shape[1:]) < smallest:
            height, width = self.input_shape[1:]
            raise InputError(
                f"{type(self).__name__} halves the image {halvings} times and needs at least {smallest} x {smallest} "
                f"pixels, but the images are {height} x {width}: use a network that halves less often, or resize."
            )
