"""The laws of the data: what is read, how it is split and cut into batches, and what of it reaches the network."""

import gzip
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchvision
from datasets import DATA_SETS, FILE_DATA_SETS, accept_stand_ins, idx_bytes, write_stand_in
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from spawned import DDP
from torch import Tensor, nn
from torchvision.transforms import functional, v2
from torchvision.transforms.v2 import Transform

from normzoo.data import CIFAR10, CIFAR100, MNIST, Digits, FashionMNIST, ImageData, Images, RandomFlip, RandomShift
from normzoo.data._files import FileData
from normzoo.data._sampler import EvalBatches, TrainBatches
from normzoo.errors import InputError

every_data_set = pytest.mark.parametrize("cls", DATA_SETS, ids=lambda cls: cls.__name__)
every_file_data_set = pytest.mark.parametrize("cls", FILE_DATA_SETS, ids=lambda cls: cls.__name__)
Build = Callable[..., Any]  # the tests also look behind the interface


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    accept_stand_ins(monkeypatch)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stand-in for every data set that is made of files."""
    folder = tmp_path_factory.mktemp("data")
    for cls in DATA_SETS:
        write_stand_in(cls.__name__, folder)
    return folder


@pytest.fixture
def build(root: Path) -> Build:
    def build(cls: type[ImageData] = Digits, **kwargs: Any) -> Any:
        """A data set that has read its images."""
        data = cls(**{"root": str(root), "val_size": 40, "download": False, **kwargs})
        data.setup()
        return data

    return build


def epoch(data: Any, number: int = 0) -> list[tuple[Tensor, Tensor]]:
    """The training batches of one epoch."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def order(sampler: Any, number: int = 0) -> list[list[int]]:
    """The rows of each batch of one epoch."""
    sampler.set_epoch(number)
    return [rows.tolist() for rows in sampler]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


# What is read


@every_data_set
def test_what_is_read_is_what_is_declared(cls: type[ImageData], build: Build) -> None:
    fresh = cls()
    channels, height, width = fresh.input_shape  # readable before there is a file
    data = build(cls, batch_size=32)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        pixels, labels = zip(*loader, strict=True)
        assert all(x.dtype == torch.uint8 and x.shape[1:] == (height, width, channels) for x in pixels)
        assert all(y.dtype == torch.int64 and y.shape == x.shape[:1] for x, y in zip(pixels, labels, strict=True))
    seen = torch.cat([labels for loader in (data.train_dataloader(), data.val_dataloader()) for _, labels in loader])
    assert seen.unique().tolist() == list(range(fresh.num_classes))
    assert len(fresh.mean) == len(fresh.std) == channels


@every_data_set
def test_declared_mean_and_std_are_those_of_the_real_images(cls: type[ImageData]) -> None:
    data = cls(root=str(Path(__file__).parents[2] / "data"), download=False)
    try:
        train, _ = data.read()
    except InputError:
        pytest.skip("its files are not on this machine")
    assert len(train) == cls.train_size
    for channel, (mean, std) in enumerate(zip(cls.mean, cls.std, strict=True)):
        counts = train.images[..., channel].flatten().bincount(minlength=256).double()
        levels = torch.arange(256, dtype=torch.float64) / 255
        measured = (counts * levels).sum() / counts.sum()
        assert measured.item() == pytest.approx(mean, abs=1e-4)
        assert ((counts * (levels - measured) ** 2).sum() / counts.sum()).sqrt().item() == pytest.approx(std, abs=1e-4)


@pytest.mark.parametrize("cls", [MNIST, CIFAR10])
def test_files_are_read_as_torchvision_reads_them(
    cls: type[FileData], build: Build, root: Path, tmp_path: Path
) -> None:
    for path in (root / cls.folder).iterdir():  # torchvision knows no compressed files
        target = tmp_path / cls.folder / path.name.removesuffix(".gz")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    theirs = cls.source(str(tmp_path), train=False)
    ((pixels, labels),) = build(cls, eval_batch_size=1000).test_dataloader()
    assert np.array_equal(pixels.numpy().reshape(np.shape(theirs.data)), np.asarray(theirs.data))
    assert labels.tolist() == list(theirs.targets)


def test_digits_are_scaled_to_the_nearest_of_256_levels() -> None:
    from sklearn.datasets import load_digits

    levels = torch.cat([images.images for images in Digits().read()]).unique().tolist()
    assert levels == [round(x * 255 / 16 + 1e-9) for x in range(17)]
    assert sum(len(images) for images in Digits().read()) == len(load_digits().target)


def test_fashion_mnist_is_found_where_debian_puts_it(
    build: Build, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FashionMNIST, "elsewhere", (str(root / FashionMNIST.folder),))
    found = build(FashionMNIST, root=str(tmp_path))
    assert torch.equal(next(iter(found.test_dataloader()))[0], next(iter(build(FashionMNIST).test_dataloader()))[0])


# The split


def rows_of(data: Any) -> tuple[set[int], set[int]]:
    train, val = data.train_dataloader().sampler, data.val_dataloader().sampler
    return set(train.rows.tolist()), set(val.rows.tolist())


@every_data_set
def test_the_split_is_disjoint_complete_and_fixed_by_its_seed(cls: type[ImageData], build: Build) -> None:
    data = build(cls)
    train, val = rows_of(data)
    assert len(val) == 40
    assert not train & val
    assert train | val == set(range(len(data.read()[0])))
    torch.manual_seed(123)  # the run's seed has no say
    assert rows_of(build(cls)) == (train, val)
    assert rows_of(build(cls, split_seed=1)) != (train, val)


def test_the_test_images_of_digits_do_not_depend_on_the_split(build: Build) -> None:
    first, second = (list(build(Digits, split_seed=seed).test_dataloader()) for seed in (0, 1))
    assert all(torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))
    counts = torch.cat([labels for _, labels in first]).bincount()
    assert counts.sum() == 360
    assert counts.max() - counts.min() <= 2  # every fifth of each digit, and the digits are nearly equally many


def test_no_validation_images_no_validation_loader(build: Build) -> None:
    assert build(val_size=0).val_dataloader() == []


# Batches

SIZES = [(100, 8), (101, 8), (97, 8), (103, 1), (17, 8), (7, 8), (16, 8)]  # rows, samples of all ranks per step / 2


@pytest.mark.parametrize("number,batch_size", SIZES)
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_many_ranks_see_together_what_one_sees(number: int, batch_size: int, world_size: int, kind: str) -> None:
    rows = torch.arange(1000, 1000 + number)

    def sampler(size: int, **ranks: Any) -> Any:
        return TrainBatches(rows, size, seed=3, **ranks) if kind == "train" else EvalBatches(rows, size, **ranks)

    one = sampler(batch_size * world_size)
    many = [sampler(batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    if kind == "eval" and batch_size == 1:  # a rank would be without samples; the batches are larger instead
        assert sorted(flat([batch for each in many for batch in order(each)])) == rows.tolist()
    else:
        parts = list(zip(*(order(each, 5) for each in many), strict=True))
        assert [flat(list(part)) for part in parts] == order(one, 5)
        assert len(one) == len(many[0]) == len(parts)
    sizes = [len(batch) for each in many for batch in order(each)]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("number,batch_size", SIZES)
def test_evaluation_sees_every_row_once_and_training_drops_what_fills_no_batch(number: int, batch_size: int) -> None:
    rows = torch.arange(1000, 1000 + number)
    batches = order(EvalBatches(rows, batch_size))
    assert flat(batches) == rows.tolist()
    assert max(map(len, batches)) <= batch_size
    batches = order(TrainBatches(rows, batch_size, seed=0))
    assert len(set(flat(batches))) == len(flat(batches))
    assert set(flat(batches)) <= set(rows.tolist())
    full = [batch_size] * (number // batch_size)
    assert [len(batch) for batch in batches] == (full or [number])


@pytest.mark.parametrize("number,batch_size", SIZES)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_without_drop_last_every_row_is_trained_on_once(number: int, batch_size: int, world_size: int) -> None:
    """In batches that many ranks see together as one sees them; of the last, smaller one the first ranks get more."""
    rows = torch.arange(1000, 1000 + number)
    one = order(TrainBatches(rows, batch_size * world_size, seed=3, drop_last=False), 2)
    settings: dict[str, Any] = {"seed": 3, "drop_last": False, "world_size": world_size}
    many = [order(TrainBatches(rows, batch_size, rank=rank, **settings), 2) for rank in range(world_size)]
    assert [flat(list(parts)) for parts in zip(*many, strict=True)] == one
    assert sorted(flat(one)) == rows.tolist()
    assert {len(batch) for batch in one[:-1]} <= {batch_size * world_size}
    for parts in zip(*many, strict=True):
        sizes = [len(part) for part in parts]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def at(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(flat(order(TrainBatches(torch.arange(64), 8, seed=seed), epoch)))

    orders = {at(seed, epoch) for seed in (0, 1, 2, 2**64 - 1) for epoch in range(5)}
    assert len(orders) == 4 * 5  # no run repeats an epoch, its own or another's
    torch.manual_seed(1)
    assert at(2, 3) in orders


def test_the_rows_a_last_batch_has_no_room_for_change_from_epoch_to_epoch() -> None:
    sampler = TrainBatches(torch.arange(15), 8, seed=0)
    assert {row for epoch in range(20) for row in flat(order(sampler, epoch))} == set(range(15))


@pytest.mark.parametrize("kind", ["train", "val", "test"])
def test_loading_takes_nothing_from_the_global_random_numbers(kind: str, build: Build) -> None:
    data = build()
    before = torch.get_rng_state()
    loader = getattr(data, f"{kind}_dataloader")()
    assert sum(len(labels) for _, labels in loader) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_of_the_run_decides_the_order_unless_another_is_given(build: Build) -> None:
    def first(run: int, **kwargs: Any) -> Tensor:
        torch.manual_seed(run)
        return epoch(build(**kwargs))[0][0]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert torch.equal(first(1, shuffle_seed=7), first(2, shuffle_seed=7))
    assert torch.equal(first(7), first(1, shuffle_seed=7))


def test_workers_change_nothing(build: Build) -> None:
    alone, helped = (build(shuffle_seed=1, batch_size=200, num_workers=workers) for workers in (0, 2))
    for number in (0, 1):
        for one, two in zip(epoch(alone, number), epoch(helped, number), strict=True):
            assert torch.equal(one[0], two[0])
            assert torch.equal(one[1], two[1])


# On its way to the network


@every_data_set
def test_normalization_is_torchvisions_to_rounding(cls: type[ImageData], build: Build) -> None:
    data = build(cls)
    pixels, labels = next(iter(data.train_dataloader()))
    slow = torch.stack([functional.normalize(functional.to_tensor(x.numpy()), cls.mean, cls.std) for x in pixels])
    on_its_way, same_labels = data.on_after_batch_transfer((pixels, labels), 0)
    for x in (on_its_way, data.normalize(pixels)):
        assert x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(x, slow, rtol=0, atol=1e-6)
    assert same_labels is labels


def test_a_batch_of_another_kind_passes_unchanged(build: Build) -> None:
    data = build()
    x, y = torch.randn(2, 1, 8, 8), torch.zeros(2)
    for batch in ((x, y), [x, y], x, {"x": x}, "x"):
        assert data.on_after_batch_transfer(batch, 0) is batch


class Recorder(pl.LightningModule):
    """Keeps the batches that reach a network for Digits."""

    def __init__(self) -> None:
        super().__init__()
        self.net: nn.Module = nn.Linear(64, 10)
        self.train_batches: list[Tensor] = []
        self.eval_batches: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.train_batches.append(x)
        return nn.functional.cross_entropy(self.net(x.flatten(1)), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.eval_batches.append(batch[0])

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        x: Tensor = batch[0]
        self.eval_batches.append(x)
        return x

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**kwargs: Any) -> pl.Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "max_epochs": 2,
    }
    return pl.Trainer(**{**quiet, **kwargs})


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_trains_on_a_new_order_every_epoch(num_workers: int, build: Build) -> None:
    data = build(batch_size=300, shuffle_seed=4, num_workers=num_workers)
    net = Recorder()
    trainer().fit(net, datamodule=data)
    data.trainer = None
    expected = [data.normalize(x) for number in (0, 1) for x, _ in epoch(data, number)]
    assert same(net.train_batches, expected)
    assert not same(expected[:4], expected[4:])


class Blank(Transform):  # type: ignore[misc]
    """Turns every pixel to 0."""

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        return torch.zeros_like(inpt)


def test_only_training_batches_are_augmented(build: Build) -> None:
    data = build(batch_size=300, augment=[Blank()])
    net, run = Recorder(), trainer(max_epochs=1)
    run.fit(net, datamodule=data)
    black = data.normalize(torch.zeros(1, 8, 8, 1, dtype=torch.uint8))[0, 0, 0, 0]
    assert all((x == black).all() for x in net.train_batches)
    for loader, evaluate in (
        (data.val_dataloader(), partial(run.validate, verbose=False)),
        (data.test_dataloader(), partial(run.test, verbose=False)),
        (data.predict_dataloader(), run.predict),
    ):
        net.eval_batches.clear()
        evaluate(net, datamodule=data)
        assert same(net.eval_batches, [data.normalize(x) for x, _ in loader])


def test_an_augmentation_may_return_floats_from_0_to_1(build: Build) -> None:
    data = build(batch_size=300, shuffle_seed=0, augment=[v2.ToDtype(torch.float32, scale=True)])
    net = Recorder()
    trainer(max_epochs=1).fit(net, datamodule=data)
    data.trainer = None
    for x, (pixels, _) in zip(net.train_batches, epoch(data), strict=True):
        torch.testing.assert_close(x, data.normalize(pixels), rtol=0, atol=1e-6)


def test_an_augmentation_may_change_the_labels(build: Build) -> None:
    data = build(batch_size=300, augment=[v2.CutMix(num_classes=10)])
    net = Recorder()
    trainer(max_epochs=1).fit(net, datamodule=data)  # cross_entropy takes the mixed labels (N, 10)
    assert net.train_batches[0].shape == (300, 1, 8, 8)


def test_a_network_in_double_precision_gets_doubles(build: Build) -> None:
    net = Recorder()
    trainer(max_epochs=1, precision="64-true").fit(net, datamodule=build(batch_size=300))
    assert net.train_batches[0].dtype == net.eval_batches[0].dtype == torch.float64


def test_overfit_batches_are_the_same_in_every_epoch(build: Build) -> None:
    net = Recorder()
    trainer(overfit_batches=2).fit(net, datamodule=build(batch_size=300))
    assert len(net.train_batches) == 4
    assert same(net.train_batches[:2], net.train_batches[2:])


def test_a_callback_that_reads_the_training_images_gets_a_whole_epoch(build: Build) -> None:
    class Reader(pl.Callback):
        read: ClassVar[list[int]] = []

        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            self.read.append(len(list(trainer.datamodule.train_dataloader())))  # type: ignore[attr-defined]

    trainer(max_epochs=1, callbacks=[Reader()]).fit(Recorder(), datamodule=build(batch_size=300))
    assert Reader.read == [4, 4, 4, 4]


class EarlyEstimate(Recorder):
    """Asks for the number of steps while Lightning has not restored its progress, as schedulers do."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("network", [Recorder, EarlyEstimate])
@pytest.mark.parametrize("steps,num_workers", [(2, 0), (4, 0), (7, 0), ("epoch", 0), (7, 2)])  # an epoch has 4 steps
def test_a_resumed_run_goes_on_with_the_batches_it_had_not_seen(
    steps: int | str, num_workers: int, network: type[Recorder], build: Build, tmp_path: Path
) -> None:
    def fit(seed: int, ckpt_path: Path | None = None, **kwargs: Any) -> list[Tensor]:
        torch.manual_seed(seed)
        net = network()
        data = build(batch_size=300, num_workers=num_workers)
        trainer(**kwargs).fit(net, datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        return net.train_batches

    when = {"every_n_epochs": 1} if steps == "epoch" else {"every_n_train_steps": steps}
    saving = ModelCheckpoint(tmp_path, filename="saved", **when)
    limit = {"max_epochs": 1} if steps == "epoch" else {"max_steps": steps}
    before = fit(1, callbacks=[saving], enable_checkpointing=True, **limit)
    after = fit(2, tmp_path / "saved.ckpt")  # another seed: the checkpoint brings that of the order
    assert len(before) == (4 if steps == "epoch" else steps)
    assert same(before + after, fit(1))


class Ranks(Recorder):
    """Writes what each rank saw to a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10))  # buffers: the ranks must keep step
        self.folder = folder

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0].flatten(1))
        super().validation_step(batch, batch_idx)

    def on_fit_start(self) -> None:
        assert self.trainer.datamodule._seed == 5  # type: ignore[attr-defined]  # rank 0's

    def on_fit_end(self) -> None:
        torch.save(self.train_batches + self.eval_batches, self.folder / f"{self.trainer.global_rank}.pt")


class SeededByRank(Digits):
    """Digits where each rank has another seed."""

    def setup(self, stage: str | None = None) -> None:
        torch.manual_seed(5 + (self.trainer.global_rank if self.trainer else 0))
        super().setup(stage)


@pytest.mark.slow
def test_two_ranks_train_and_evaluate_together_as_one(tmp_path: Path) -> None:
    seen = []
    for ranks in (1, 2):
        data = SeededByRank(batch_size=300 // ranks, eval_batch_size=46 // ranks, val_size=181)
        strategy = "auto" if ranks == 1 else DDP()
        run = trainer(devices=ranks, strategy=strategy, num_sanity_val_steps=0)
        run.fit(Ranks(tmp_path), datamodule=data)
        batches = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
        seen.append([torch.cat(parts) for parts in zip(*batches, strict=True)])
    assert len(seen[0]) == 2 * (4 + 4)
    assert same(*seen)


# Augmentations

FORMATS = [torch.contiguous_format, torch.channels_last]


def images(dtype: torch.dtype = torch.uint8, layout: torch.memory_format = torch.channels_last) -> Tensor:
    x = torch.randint(1, 256, (64, 3, 9, 12), generator=torch.Generator().manual_seed(0))
    return x.to(dtype).contiguous(memory_format=layout)


def shifted(x: Tensor, dy: int, dx: int) -> Tensor:
    """`y[i, j] = x[i + dy, j + dx]`, slowly."""
    y = torch.zeros_like(x)
    height, width = x.shape[-2:]
    for i in range(height):
        for j in range(width):
            if 0 <= i + dy < height and 0 <= j + dx < width:
                y[:, i, j] = x[:, i + dy, j + dx]
    return y


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("transform", [RandomFlip(), RandomShift(2), RandomShift(0)], ids=str)
def test_augmentations_keep_shape_dtype_and_format(
    transform: Transform, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    x = images(dtype, layout)
    before = x.clone()
    y = transform(x)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, dtype, x.stride())
    assert torch.equal(x, before)
    labels = torch.arange(64)
    assert transform(x, labels)[1] is labels


def test_each_image_is_flipped_or_not() -> None:
    x = images()
    y = RandomFlip()(x)
    flipped = [torch.equal(b, a.flip(-1)) for a, b in zip(x, y, strict=True)]
    kept = [torch.equal(b, a) for a, b in zip(x, y, strict=True)]
    assert all(f != k for f, k in zip(flipped, kept, strict=True))
    assert 10 < sum(flipped) < 54
    assert torch.equal(RandomFlip(0)(x), x)
    assert torch.equal(RandomFlip(1)(x), x.flip(-1))


def test_each_image_is_shifted_on_its_own() -> None:
    x, padding = images(), 2
    moves = [(dy, dx) for dy in range(-padding, padding + 1) for dx in range(-padding, padding + 1)]
    drawn = set()
    for a, b in zip(x, RandomShift(padding)(x), strict=True):
        (move,) = [move for move in moves if torch.equal(b, shifted(a, *move))]
        drawn.add(move)
    assert len(drawn) > 10
    assert {axis for move in drawn for axis in move} == set(range(-padding, padding + 1))
    assert torch.equal(RandomShift(0)(x), x)


def test_augmentations_follow_the_seed_of_the_run() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        augmented: Tensor = RandomShift()(RandomFlip()(images()))
        return augmented

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_the_command_line_builds_a_data_set_with_augmentations() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageData, "data")
    augment = "[{class_path: RandomFlip, init_args: {p: 0.25}}, {class_path: torchvision.transforms.v2.RandomInvert}]"
    data = parser.instantiate(
        parser.parse_args(["--data=Digits", f"--data.augment={augment}", "--data.batch_size=32"])
    ).data
    assert isinstance(data, Digits)
    assert data.batch_size == 32
    assert [type(transform) for transform in data.augment] == [RandomFlip, v2.RandomInvert]
    assert data.augment[0].p == 0.25


# Errors


@every_data_set
@pytest.mark.parametrize(
    "name,value", [("batch_size", 0), ("eval_batch_size", -1), ("val_size", -1), ("num_workers", -1)]
)
def test_a_wrong_number_is_refused_at_once(cls: Callable[..., ImageData], name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name}={value} .* or more"):
        cls(**{name: value})


@every_data_set
def test_images_must_be_left_to_train_on(cls: type[ImageData], build: Build) -> None:
    with pytest.raises(InputError, match=f"val_size={cls.train_size} .* at most {cls.train_size - 1}"):
        cls(val_size=cls.train_size)
    if cls is not Digits:  # files with fewer images than the real ones
        with pytest.raises(InputError, match=r"val_size=200 .* at most 199"):
            build(cls, val_size=200)


def test_wrong_use_is_told() -> None:
    with pytest.raises(InputError, match=r"augment holds 3; .*v2\.Transform"):
        Digits(augment=[3])
    with pytest.raises(InputError, match=r"Digits has not read .* setup\(\)"):
        Digits().train_dataloader()
    with pytest.raises(InputError, match=r"float32 \(2, 1, 8, 8\).*uint8"):
        Digits().normalize(torch.zeros(2, 1, 8, 8))
    with pytest.raises(InputError, match=r"\(2, 1, 8, 8\).* C = 1"):
        Digits().normalize(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match="1 images for 2 processes"):
        EvalBatches(torch.arange(1), 8, rank=0, world_size=2)
    with pytest.raises(InputError, match=r"p=1\.5 .* 0 to 1"):
        RandomFlip(1.5)
    with pytest.raises(InputError, match=r"padding=-1 .* 0 or more"):
        RandomShift(-1)
    with pytest.raises(InputError, match=r"RandomFlip got \(3, 8, 8\)"):
        RandomFlip()(torch.zeros(3, 8, 8))


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, on a machine without any system package."""
    monkeypatch.setattr(FashionMNIST, "elsewhere", (str(tmp_path / "system"),))
    return tmp_path / "root"


@every_file_data_set
def test_missing_files_are_named_with_place_and_remedy(
    cls: type[FileData], nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nowhere.parent)
    data = cls(root="root", download=False)  # a relative folder is told in full
    data.prepare_data()
    with pytest.raises(InputError) as error:
        data.setup()
    told = str(error.value)
    assert all(name in told for name in cls.names)
    assert str(nowhere / cls.folder) in told
    assert "download=true" in told
    assert all(folder in told for folder in cls.elsewhere)
    assert ("apt install dataset-fashion-mnist" in told) == (cls is FashionMNIST)
    assert not nowhere.exists()


@every_file_data_set
def test_a_download_that_breaks_off_leaves_nothing_and_the_next_one_completes(
    cls: type[FileData], nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = True

    def download(url: str, root: str = "", download_root: str = "", **kwargs: Any) -> None:
        folder = Path(root or download_root)  # temporary / cls.folder for MNIST's format, temporary for CIFAR
        if broken:
            (folder / "half-a-file").write_bytes(b"...")
            raise URLError("no network")
        top = folder if root else folder.parents[1]
        write_stand_in(cls.__name__, top)
        for path in top.rglob("*.gz"):  # torchvision unpacks what it has downloaded
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))

    for module in (torchvision.datasets.mnist, torchvision.datasets.cifar):
        monkeypatch.setattr(module, "download_and_extract_archive", download)
    data = cls(root=str(nowhere), val_size=10)
    with pytest.raises(InputError, match="no network") as error:
        data.prepare_data()
    assert str(nowhere / cls.folder) in str(error.value)
    assert list(nowhere.rglob("*")) == []
    broken = False
    data.prepare_data()
    assert {path.name for path in nowhere.rglob("*") if path.is_file()} == set(cls.names)
    broken = True  # now the files are there: nothing is downloaded
    data.prepare_data()
    data.setup()
    assert len(data.test_dataloader().dataset) == 100  # type: ignore[arg-type]


def spoil(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Ways in which a file can be broken."""
    yield "empty", b""
    yield "truncated", content[: len(content) // 2]
    yield "too long", content + b"x"
    yield "another type", bytes([0, 0, 9]) + content[3:]
    yield "another size", content[:7] + bytes([content[7] ^ 1]) + content[8:]
    yield "a web page", b"<html>404</html>"


@pytest.mark.parametrize("compressed", [True, False])
def test_a_broken_idx_file_is_named(compressed: bool, build: Build, tmp_path: Path) -> None:
    write_stand_in("MNIST", tmp_path)
    packed = tmp_path / MNIST.folder / "train-images-idx3-ubyte.gz"
    content = gzip.decompress(packed.read_bytes())
    path = packed if compressed else packed.with_suffix("")  # the plain file goes before the compressed one
    for _, broken in spoil(content):
        path.write_bytes(gzip.compress(broken) if compressed else broken)
        with pytest.raises(InputError, match=f"{path} .*download=true"):
            build(MNIST, root=str(tmp_path))
    if compressed:
        for broken in (gzip.compress(content)[:-100], b"not gzip", gzip.compress(content)[:50] + b"\0" * 100):
            path.write_bytes(broken)
            with pytest.raises(InputError, match=f"{path} .*download=true"):
                build(MNIST, root=str(tmp_path))


@pytest.mark.parametrize("cls", [CIFAR10, CIFAR100])
def test_a_cifar_file_that_is_not_the_published_one_is_named_and_not_unpickled(
    cls: type[FileData], build: Build, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # checksums count again, and no stand-in has the right one
    monkeypatch.setattr("pickle.load", lambda *args, **kwargs: pytest.fail("unpickled"))
    with pytest.raises(InputError, match=f"{root / cls.folder / cls.names[0]}.*md5.*download=true"):
        build(cls)


@pytest.mark.parametrize(
    "part,values,rule",
    [
        ("train-images-idx3-ubyte", np.zeros((200, 27, 28), np.uint8), r"uint8 \(N, 28, 28, 1\).*\(200, 27, 28, 1\)"),
        ("train-labels-idx1-ubyte", np.zeros(199, np.uint8), r"one int64 label per image.*\(199,\)"),
        ("t10k-labels-idx1-ubyte", np.full(100, 10, np.uint8), "labels are 0 to 9.*from 10 to 10"),
    ],
)
def test_files_of_another_data_set_are_refused(
    part: str, values: np.ndarray, rule: str, build: Build, tmp_path: Path
) -> None:
    write_stand_in("MNIST", tmp_path)
    (tmp_path / MNIST.folder / part).write_bytes(idx_bytes(values))
    with pytest.raises(InputError, match=f"MNIST: .*{rule}"):
        build(MNIST, root=str(tmp_path))


def test_a_data_set_of_ones_own_without_images_is_refused() -> None:
    class Empty(Digits):
        def read(self) -> tuple[Images, Images]:
            nothing = Images(torch.zeros(0, 8, 8, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
            return nothing, nothing

    with pytest.raises(InputError, match="Empty: the training images break the rule that there is at least one"):
        Empty(val_size=0).setup()
