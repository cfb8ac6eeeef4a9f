"""What CIFAR-10 and CIFAR-100 share: pickled batches, which torchvision reads once their checksums are right."""

from pathlib import Path
from typing import ClassVar

import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from normzoo.errors import InputError

from ._files import FileData
from ._images import Images


class CIFARData(FileData):
    """A data set in the pickled batches of CIFAR."""

    source: ClassVar[type[CIFAR10]]
    input_shape = (3, 32, 32)
    train_size = 50_000
    default_val_size = 5_000

    def read(self) -> tuple[Images, Images]:
        """With torchvision, which unpickles nothing but the published files: a pickle can run code."""
        paths = self.locate()
        try:
            train, test = (self._part(train=train) for train in (True, False))
        except RuntimeError as error:
            raise InputError(
                f"{self._altered(paths) or error}: not the published file of {type(self).__name__}, by its md5; "
                "delete it and bring it again (download=true)"
            ) from error
        return train, test

    def _part(self, *, train: bool) -> Images:
        part = self.source(Path(self.root), train=train)
        return Images(torch.from_numpy(part.data), torch.tensor(part.targets))

    def _altered(self, paths: dict[str, Path]) -> str:
        """The files whose checksum is not the published one."""
        meta = self.source.meta
        checksums = dict([*self.source.train_list, *self.source.test_list, (meta["filename"], meta["md5"])])
        return ", ".join(str(path) for name, path in paths.items() if not check_integrity(path, checksums[name]))
