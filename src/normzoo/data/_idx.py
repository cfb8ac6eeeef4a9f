"""The file format of the MNIST family, and the data sets that use it.

IDX: two zero bytes, a type (8: uint8), the number of dimensions, each size as a big-endian int32, then the values.
"""

import gzip
import zlib
from math import prod
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from normzoo.errors import InputError

from ._files import FileData
from ._images import Images


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 tensor in an IDX file, which may be gzipped."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(path, str(error)) from error
    start = 4 * (1 + dimensions)
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic or len(content) < start:
        raise _broken(path, f"it begins with {content[:4].hex(' ') or 'nothing'}, and IDX data with {magic.hex(' ')}")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) - start != prod(shape):
        raise _broken(path, f"it announces {prod(shape)} values, {shape}, and holds {len(content) - start}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].view(shape)  # torch needs writable memory


def _broken(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is not a whole IDX file: {reason}; delete it and bring it again (download=true)")


class IDXData(FileData):
    """A data set in the four IDX files of MNIST, compressed or not."""

    names: ClassVar[tuple[str, ...]] = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    suffixes = ("", ".gz")
    input_shape = (1, 28, 28)
    num_classes = 10
    train_size = 60_000
    default_val_size = 5_000

    def read(self) -> tuple[Images, Images]:
        """From the first folder that has the four files."""
        paths = self.locate()
        train, test = (
            Images(
                read_idx(paths[f"{part}-images-idx3-ubyte"], dimensions=3).unsqueeze(-1),
                read_idx(paths[f"{part}-labels-idx1-ubyte"], dimensions=1).long(),
            )
            for part in ("train", "t10k")
        )
        return train, test
