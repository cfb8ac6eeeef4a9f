"""Which rows are in which batch: the same for one process and for many, and a function of (seed, epoch) alone.

The rows of an epoch are cut into steps, and those of a step into `world_size` consecutive parts, whose sizes differ by
at most one: the batches of the ranks. Hence two ranks with batches of B see, together, exactly the batches of one rank
with 2B.

The samplers are `DistributedSampler`s so that Lightning takes them as they are, with one process or many.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, SequentialSampler

from normzoo.errors import InputError


class _Batches(DistributedSampler[Tensor]):
    """Cuts `rows` into batches, `steps` of them for each rank."""

    def __init__(self, rows: Tensor, steps: int, *, rank: int, world_size: int) -> None:
        if len(rows) < world_size:
            raise InputError(
                f"{len(rows)} images for {world_size} processes: each process needs at least one image; "
                "use fewer devices, or change val_size"
            )
        super().__init__(rows, num_replicas=world_size, rank=rank)  # type: ignore[arg-type]  # only its length is read
        self.rows = rows
        self.steps = steps

    def __len__(self) -> int:
        return self.steps


class TrainBatches(_Batches):
    """Every epoch in a new order; rows that do not fill a last batch wait for another epoch, or make a smaller one.

    Fewer rows than one batch make one batch of all of them. A smaller batch is shared by the ranks as equally as it can
    be: of one with fewer rows than there are ranks, some get an empty part.

    Args:
        rows: int64 `(N,)`, the rows of the data set to train on.
        batch_size: samples per process per step.
        seed: with the epoch, decides the order.
        drop_last: leave rows that do not fill a batch for another epoch.
        rank: which of the processes this is.
        world_size: number of processes.
        batches_done: called at the start of an epoch; returns how many of its batches a resumed run has trained on.
    """

    def __init__(
        self,
        rows: Tensor,
        batch_size: int,
        *,
        seed: int,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
        batches_done: Callable[[], int] | None = None,
    ) -> None:
        self.batch = batch_size * world_size
        full, rest = divmod(len(rows), self.batch)
        steps = full + (rest > 0 and not (drop_last and full))
        super().__init__(rows, steps, rank=rank, world_size=world_size)
        self.seed = seed
        self._batches_done = batches_done

    def __iter__(self) -> Iterator[Tensor]:
        # torch's generator reads 32 bits of its seed. seed + epoch would repeat run 0's second epoch as run 1's first;
        # steps of 2^32 / golden ratio keep the epochs of neighbouring seeds far apart.
        mixed = (self.seed * 0x9E3779B9 + self.epoch) % 2**32
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(mixed))
        for step in range(self._batches_done() if self._batches_done else 0, self.steps):
            whole = self.rows[order[step * self.batch : (step + 1) * self.batch]]
            # As equal as can be; the first ranks get one more, or the only ones.
            yield whole.tensor_split(self.num_replicas)[self.rank]


class EvalBatches(_Batches, SequentialSampler):
    """Every row once, in order, in batches of nearly equal size.

    Equal sizes leave no tiny last batch, on which a layer that normalizes over the batch would fail or mislead, and no
    rank without samples, for which the others would wait forever in a synchronized layer. A rank's batch exceeds
    `batch_size` only where that is 1 and the rows do not divide among the ranks.

    It is a `SequentialSampler` too, which is how Lightning knows that `overfit_batches` need not replace it.

    Args:
        rows: int64 `(N,)`, the rows of the data set to evaluate on.
        batch_size: samples per process per step, at most.
        rank: which of the processes this is.
        world_size: number of processes.
        batches_done: as above, if the rows are trained on.
    """

    def __init__(
        self,
        rows: Tensor,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        batches_done: Callable[[], int] | None = None,
    ) -> None:
        enough = -(-len(rows) // (batch_size * world_size))  # rounded up
        super().__init__(rows, min(enough, len(rows) // world_size), rank=rank, world_size=world_size)
        self.data_source = rows
        self._batches_done = batches_done

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]  # torch's yields single rows
        parts = self.steps * self.num_replicas
        done = self._batches_done() if self._batches_done else 0
        for part in range(done * self.num_replicas + self.rank, parts, self.num_replicas):
            yield self.rows[len(self.rows) * part // parts : len(self.rows) * (part + 1) // parts]
