"""Labelled images in memory, read a whole batch at a time."""

from torch import Tensor
from torch.utils.data import Dataset

# N images of H x W pixels and C channels.


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Labelled images in one tensor: an index is a tensor of rows, an item is a batch.

    Pixels are stored NHWC, so that a batch permuted to NCHW is channels-last without a copy.

    Args:
        images: uint8 `(N, H, W, C)`.
        labels: int64 `(N,)`, from 0.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images.contiguous()
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        # index_select copies whole images; images[rows] walks them pixel by pixel, ten to twenty times slower.
        return self.images.index_select(0, rows), self.labels.index_select(0, rows)
