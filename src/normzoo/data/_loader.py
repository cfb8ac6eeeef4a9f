"""A DataLoader of whole batches that a resumed run can continue."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ._images import Images

Batch = tuple[Tensor, Tensor]


class BatchLoader(DataLoader[Batch]):
    """The `DataLoader` whose sampler names whole batches; see `batch_loader`."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names the class of its own iterator
        # Nothing runs before the first batch is requested. Lightning makes the iterator first and only then sets the
        # epoch and restores its progress, and worker processes would read ahead in the order of the wrong epoch.
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Empty: the sampler reads its position from Lightning's progress. The method marks the loader as resumable."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load; the counterpart of `state_dict`."""


def batch_loader(images: Images, batches: Sampler[Tensor], *, num_workers: int) -> BatchLoader:
    """Yields `images[rows]`, uint8 `(N, H, W, C)` and labels `(N,)`, for each tensor of rows that `batches` yields."""
    return BatchLoader(
        images,
        sampler=batches,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # a loader without its own draws a number from the global one at every epoch
    )


def _as_it_is(batch: Any) -> Any:
    return batch
