"""Small generated stand-ins for the files of every data set, in the real format, so that tests need no network."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision

from normzoo import data
from normzoo.data._cifar import CIFARData
from normzoo.data._files import FileData
from normzoo.data._idx import IDXData

DATA_SETS: list[type[data.ImageData]] = [
    one
    for one in map(vars(data).__getitem__, data.__all__)
    if issubclass(one, data.ImageData) and one is not data.ImageData
]
FILE_DATA_SETS: list[type[FileData]] = [one for one in DATA_SETS if issubclass(one, FileData)]


def write_stand_in(name: str, root: Path, *, train: int = 200, test: int = 100) -> None:
    """Write `train` + `test` generated images as the files of the data set called `name` into `root`.

    Labels run through all classes in turn, and each class has a pattern under the noise, so that a network can learn.
    A data set that needs no files writes none. Every name in `DATA_SETS` is known; CIFAR also needs `accept_stand_ins`.
    """
    cls = getattr(data, name)
    if issubclass(cls, IDXData):
        _write_idx(cls, root, train, test)
    elif issubclass(cls, CIFARData):
        _write_cifar(cls, root, train, test)
    elif issubclass(cls, FileData):
        raise NotImplementedError(f"{name}: tests/helpers/datasets.py does not know how to write its files")


def accept_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torchvision read CIFAR files whatever their checksum, until the end of the test."""
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())


def idx_bytes(values: np.ndarray) -> bytes:
    """A uint8 array as the content of an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()


def _generate(cls: type[data.ImageData], number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 `(N, C, H, W)` and labels `(N,)`."""
    labels = np.arange(number) % cls.num_classes
    patterns = np.random.default_rng(0).integers(0, 128, (cls.num_classes, *cls.input_shape))
    noise = np.random.default_rng(seed).integers(0, 128, (number, *cls.input_shape))
    return (patterns[labels] + noise).astype(np.uint8), labels.astype(np.uint8)


def _write_idx(cls: type[IDXData], root: Path, train: int, test: int) -> None:
    folder = root / cls.folder
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (part, number) in enumerate({"train": train, "t10k": test}.items(), start=1):
        pixels, labels = _generate(cls, number, seed)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(pixels[:, 0])))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))  # not compressed: both forms are read


def _write_cifar(cls: type[CIFARData], root: Path, train: int, test: int) -> None:
    folder = root / cls.folder
    folder.mkdir(parents=True, exist_ok=True)
    *train_files, test_file, meta_file = cls.names
    pixels, labels = _generate(cls, train, seed=1)
    parts = zip(np.array_split(pixels, len(train_files)), np.array_split(labels, len(train_files)), strict=True)
    batches = dict(zip(train_files, parts, strict=True))
    batches[test_file] = _generate(cls, test, seed=2)
    key = "labels" if cls.num_classes == 10 else "fine_labels"
    for name, (some_pixels, some_labels) in batches.items():
        content = {"data": some_pixels.reshape(len(some_pixels), -1), key: some_labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    classes = [str(label) for label in range(cls.num_classes)]
    (folder / meta_file).write_bytes(pickle.dumps({cls.source.meta["key"]: classes}))
