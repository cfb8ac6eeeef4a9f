"""What every data set shares: images in memory, a fixed split, batches that are normalized on the device."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import reduce
from typing import Any, ClassVar
from zlib import crc32

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchvision.transforms.v2 import Transform

from normzoo.errors import InputError

from ._images import Images
from ._loader import BatchLoader, batch_loader
from ._sampler import EvalBatches, TrainBatches

# N images of H x W pixels and C channels. Images lie in memory as uint8 NHWC and reach the network as float32 NCHW in
# channels-last format.


class ImageData(LightningDataModule, ABC):
    """A data set of labelled images, split into training, validation and test images.

    A batch reaches the network as float32 `(N, C, H, W)`, `(pixel / 255 - mean) / std`, with labels int64 `(N,)`.
    The order of the training images depends on (seed, epoch) alone, whatever else draws random numbers.

    For a data set of your own, set the class attributes and implement `read`, and `prepare_data` if files must be
    downloaded. `normzoo fit --data=my_package.Squares --model.net=ConvNet` then trains on it.

    >>> class Squares(ImageData):
    ...     input_shape, num_classes = (1, 8, 8), 2
    ...     mean, std = (0.5,), (0.5,)
    ...     train_size, default_val_size = 80, 20
    ...
    ...     def read(self) -> tuple[Images, Images]:
    ...         pixels = torch.zeros(100, 8, 8, 1, dtype=torch.uint8)  # (N, H, W, C)
    ...         labels = torch.arange(100) % 2
    ...         return Images(pixels[:80], labels[:80]), Images(pixels[80:], labels[80:])
    >>> data = Squares(batch_size=20)
    >>> data.setup()
    >>> [len(labels) for _, labels in data.train_dataloader()]
    [20, 20, 20]

    Args:
        root: the folder of all data sets.
        batch_size: training samples per process per step.
        eval_batch_size: the most samples per process per step in evaluation, which needs less memory than training;
            None is 4 x `batch_size`.
        drop_last: skip the training images of an epoch that do not fill a batch; false trains on them as a smaller
            batch, of which some processes may get nothing.
        val_size: how many of the training images are held out for validation; None is `default_val_size`.
        split_seed: decides which images are held out.
        shuffle_seed: decides, with the epoch, the order of the training images; None is the seed of the run.
        augment: transforms of torchvision.transforms.v2, or from `normzoo.data`, for training batches. They see uint8
            `(N, C, H, W)`; the ones of torchvision draw one random number for the whole batch.
        download: fetch missing files.
        num_workers: worker processes that assemble batches. A batch is one copy in memory: 0 is fastest, unless the
            machine has cores to spare.
    """

    input_shape: ClassVar[tuple[int, int, int]]
    """C, H, W."""
    num_classes: ClassVar[int]
    mean: ClassVar[tuple[float, ...]]
    """Per channel, over the training images with pixels in [0, 1]."""
    std: ClassVar[tuple[float, ...]]
    """Per channel, over the training images with pixels in [0, 1]."""
    train_size: ClassVar[int]
    """Number of training images, those held out for validation included."""
    default_val_size: ClassVar[int]

    def __init__(
        self,
        *,
        root: str = "data",
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        drop_last: bool = True,
        val_size: int | None = None,
        split_seed: int = 0,
        shuffle_seed: int | None = None,
        augment: list[Transform] | None = None,
        download: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.root = root
        self.batch_size = _at_least(1, "batch_size", batch_size)
        eval_batch_size = 4 * batch_size if eval_batch_size is None else eval_batch_size
        self.eval_batch_size = _at_least(1, "eval_batch_size", eval_batch_size)
        self.drop_last = drop_last
        self.val_size = _at_least(0, "val_size", self.default_val_size if val_size is None else val_size)
        self._require_training_images(self.train_size)
        self.split_seed = _a_seed("split_seed", split_seed)
        self.shuffle_seed = None if shuffle_seed is None else _a_seed("shuffle_seed", shuffle_seed)
        self.augment = list(augment or ())
        for transform in self.augment:
            if not callable(transform):
                raise InputError(f"augment holds {transform!r}; it is a list of torchvision.transforms.v2.Transform")
        self.download = download
        self.num_workers = _at_least(0, "num_workers", num_workers)
        self._seed = 0
        self._train: Images | None = None
        self._test: Images | None = None
        self._crc: int | None = None
        self._constants: dict[tuple[torch.device, torch.Size, bool], tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def read(self) -> tuple[Images, Images]:
        """The training images, those to be held out for validation included, and the test images."""

    def setup(self, stage: str | None = None) -> None:
        """Read the images, once, and split off the validation images."""
        if self._train is None:
            train, test = self.read()
            self._require_declared(train, "training")
            self._require_declared(test, "test")
            self._require_training_images(len(train))
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.split_seed))
            self._val_rows, self._train_rows = (part.sort().values for part in order.tensor_split([self.val_size]))
            self._train, self._test = train, test
        if self.shuffle_seed is not None:
            self._seed = self.shuffle_seed
        else:
            # Ranks may have different seeds on purpose, but need one order of the data.
            seed = torch.initial_seed()
            self._seed = self.trainer.strategy.broadcast(seed) if self.trainer else seed

    def train_dataloader(self) -> BatchLoader:
        """The training images: shuffled, in batches of uint8 `(N, H, W, C)` and int64 `(N,)`."""
        train, _ = self._images()
        if self.trainer and self.trainer.overfit_batches > 0:  # type: ignore[attr-defined]  # set by Lightning, undeclared
            # overfit_batches asks for the same few batches in every epoch.
            return self._eval_loader(train, self._train_rows, self.batch_size, self._batches_done)
        batches = TrainBatches(
            self._train_rows,
            self.batch_size,
            seed=self._seed,
            drop_last=self.drop_last,
            batches_done=self._batches_done,
            **self._ranks(),
        )
        return batch_loader(train, batches, num_workers=self.num_workers)

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The images held out for validation, in order; no loader where none are."""
        train, _ = self._images()
        return self._eval_loader(train, self._val_rows, self.eval_batch_size) if self.val_size else []

    def test_dataloader(self) -> BatchLoader:
        """The test images, in order."""
        _, test = self._images()
        return self._eval_loader(test, torch.arange(len(test)), self.eval_batch_size)

    def predict_dataloader(self) -> BatchLoader:
        """The test images, in order."""
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a training batch, normalize every batch of uint8 pixels; a batch of another kind passes unchanged."""
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and _is_uint8(batch[0])):
            return batch
        images, labels = self._channels_first(batch[0]), batch[1]
        if self.trainer is None:
            return self._standardize(images), labels
        if self.trainer.training:
            for transform in self.augment:
                images, labels = transform(images, labels)
        # Lightning has cast the batch already, when it was uint8: convert to half or double precision now.
        return self.trainer.precision_plugin.convert_input(self._standardize(images)), labels

    def normalize(self, images: Tensor) -> Tensor:
        """`(images / 255 - mean) / std`: uint8 `(N, H, W, C)` to float32 `(N, C, H, W)`, channels-last."""
        if not _is_uint8(images) or images.ndim != 4:
            raise InputError(
                f"images are {images.dtype} {tuple(images.shape)}; "
                "normalize takes uint8 pixels (N, H, W, C), as the loaders yield them"
            )
        return self._standardize(self._channels_first(images))

    def state_dict(self) -> dict[str, Any]:
        """The seed of the order; the position within the epoch is part of Lightning's progress."""
        return {"shuffle_seed": self._seed, "fingerprint": self._fingerprint()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the order of the run that was saved, unless `shuffle_seed` asks for another."""
        saved, now = state_dict.get("fingerprint"), self._fingerprint()
        if None not in (saved, now) and saved != now:
            rank_zero_warn(
                f"{type(self).__name__}: the images in {self.root!r} are not those of the checkpoint (fingerprint "
                f"{now}, not {saved}). A run that continues with them is not exact: bring back the files, or start a "
                f"new run."
            )
        if self.shuffle_seed is None:
            self._seed = state_dict["shuffle_seed"]

    def _fingerprint(self) -> int | None:
        """A checksum of all images and labels, None before they are read."""
        if self._crc is None and self._train is not None:
            parts = [part for images in self._images() for part in (images.images, images.labels)]
            self._crc = reduce(lambda crc, part: crc32(part.contiguous().numpy().data, crc), parts, 0)
        return self._crc

    def _eval_loader(
        self, images: Images, rows: Tensor, batch_size: int, batches_done: Callable[[], int] | None = None
    ) -> BatchLoader:
        batches = EvalBatches(rows, batch_size, batches_done=batches_done, **self._ranks())
        return batch_loader(images, batches, num_workers=self.num_workers)

    def _images(self) -> tuple[Images, Images]:
        if self._train is None or self._test is None:
            raise InputError(
                f"{type(self).__name__} has not read its images; call prepare_data() and setup() before a loader"
            )
        return self._train, self._test

    def _ranks(self) -> dict[str, Any]:
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size} if self.trainer else {}

    def _batches_done(self) -> int:
        """Batches of the epoch now beginning that were trained on before the run was resumed."""
        if self.trainer is None:
            return 0
        loop = self.trainer.fit_loop.epoch_loop
        # Outside a resumed epoch the counter still holds the end of the last epoch.
        return loop.batch_progress.current.ready if loop.restarting else 0

    def _channels_first(self, images: Tensor) -> Tensor:
        channels = self.input_shape[0]
        if images.shape[-1] != channels:
            raise InputError(
                f"a batch of pixels has the shape {tuple(images.shape)}; "
                f"{type(self).__name__} yields (N, H, W, C) with C = {channels}"
            )
        return images.permute(0, 3, 1, 2)

    def _standardize(self, images: Tensor) -> Tensor:
        """`(x - mean) / std` per channel, of x in [0, 255] if uint8, and in [0, 1] if an augmentation made it float."""
        key = (images.device, images.shape[1:], images.is_floating_point())
        if key not in self._constants:
            self._constants[key] = self._scale_and_shift(*key)
        scale, shift = self._constants[key]
        return torch.addcmul(shift, images.float(), scale)

    def _scale_and_shift(self, device: torch.device, shape: torch.Size, is_float: bool) -> tuple[Tensor, Tensor]:
        """`1 / (std * largest pixel)` and `-mean / std`, as whole images `(C, H, W)`.

        A whole image in the memory order of the batch is multiplied in one long loop; one number per channel makes a
        loop of length C for every pixel, six times slower for colour images.
        """
        mean, std = torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.std, dtype=torch.float64)
        height, width = shape[1:]

        def image(values_C: Tensor) -> Tensor:
            return values_C.to(device, torch.float32).expand(height, width, -1).contiguous().permute(2, 0, 1)

        return image(1 / (std * (1 if is_float else 255))), image(-mean / std)

    def _require_training_images(self, number: int) -> None:
        if self.val_size >= number:
            raise InputError(
                f"val_size={self.val_size} leaves nothing to train on: {type(self).__name__} has {number} training "
                f"images; hold out at most {number - 1}"
            )

    def _require_declared(self, images: Images, part: str) -> None:
        """Compare the images that were read with what the class declares."""
        channels, height, width = self.input_shape
        pixels, labels = images.images, images.labels
        rules = {
            f"pixels are uint8 (N, {height}, {width}, {channels})": (
                pixels.dtype == torch.uint8 and pixels.shape[1:] == (height, width, channels)
            ),
            "there is one int64 label per image": labels.dtype == torch.int64 and labels.shape == pixels.shape[:1],
            "there is at least one image": len(images) > 0,
            f"labels are 0 to {self.num_classes - 1}": not len(labels)
            or (int(labels.min()) >= 0 and int(labels.max()) < self.num_classes),
        }
        for rule, kept in rules.items():
            if not kept:
                raise InputError(
                    f"{type(self).__name__}: the {part} images break the rule that {rule}; found pixels {pixels.dtype} "
                    f"{tuple(pixels.shape)}, labels {labels.dtype} {tuple(labels.shape)}"
                    f"{f' from {int(labels.min())} to {int(labels.max())}' if len(labels) else ''}; "
                    "restore the original files, or fix read()"
                )


def _is_uint8(images: Any) -> bool:
    return isinstance(images, Tensor) and images.dtype == torch.uint8


def _at_least(least: int, name: str, value: int) -> int:
    if value < least:
        raise InputError(f"{name}={value} is too small; it is a number of {least} or more")
    return value


def _a_seed(name: str, value: int) -> int:
    if not 0 <= value < 2**63:
        raise InputError(f"{name}={value}: a seed lies in [0, 2^63); try 0.")
    return value
