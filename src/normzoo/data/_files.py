"""Data sets that are files under `root`, fetched where they are missing by torchvision."""

import os
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from tempfile import TemporaryDirectory
from typing import ClassVar

from torchvision.datasets import VisionDataset

from normzoo.errors import InputError

from ._base import ImageData

# What torchvision raises where a download fails: no network, a mirror that is down, a wrong checksum, a broken archive,
# a full disk. URLError is an OSError.
DOWNLOAD_ERRORS = (OSError, RuntimeError, HTTPException, EOFError, TarError)


class FileData(ImageData):
    """A data set made of files, under `root` or where the system keeps them."""

    source: ClassVar[type[VisionDataset]]
    """torchvision's class: it knows the addresses and the checksums."""
    folder: ClassVar[str]
    """Where under `root` the files are: torchvision's place."""
    names: ClassVar[tuple[str, ...]]
    """The files that are needed."""
    suffixes: ClassVar[tuple[str, ...]] = ("",)
    """What may follow each name: ".gz" where a compressed file is read as well."""
    elsewhere: ClassVar[tuple[str, ...]] = ()
    """Other folders that may hold the files, such as those of a system package."""
    remedy: ClassVar[str] = ""
    """Another way to get the files."""

    def prepare_data(self) -> None:
        """Download the files if no folder has them. Lightning calls this in one process per machine."""
        if self.download and not any(map(self._is_complete, self._folders())):
            self._fetch()

    def locate(self) -> dict[str, Path]:
        """The path of each file of `names`, all from the first folder that has them all."""
        for folder in self._folders():
            if self._is_complete(folder):
                return {name: self._present(folder, name)[0] for name in self.names}
        raise self._missing("Use download=true where there is a network")

    def _folders(self) -> list[Path]:
        """Where the files may be; `root` comes first."""
        return [Path(self.root, self.folder).absolute(), *map(Path, self.elsewhere)]

    def _present(self, folder: Path, name: str) -> list[Path]:
        return [path for suffix in self.suffixes if (path := folder / f"{name}{suffix}").is_file()]

    def _is_complete(self, folder: Path) -> bool:
        return all(self._present(folder, name) for name in self.names)

    def _fetch(self) -> None:
        """Download to a temporary folder, then move: an interrupted download must not look complete to the next run."""
        goal, root = self._folders()[0], Path(self.root)
        is_new = not root.exists()
        try:
            root.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=root, prefix=".download-") as temporary:
                self.source(temporary, download=True)
                goal.mkdir(parents=True, exist_ok=True)
                for name in self.names:
                    os.replace(Path(temporary, self.folder, name), goal / name)
        except DOWNLOAD_ERRORS as error:
            if is_new:
                with suppress(OSError):  # what is in it stays
                    root.rmdir()
            reason = " ".join(str(error).split())  # torchvision's runs over several lines
            raise self._missing(f"The download failed ({reason}): try again with a network") from error

    def _missing(self, advice: str) -> InputError:
        first, *others = self._folders()
        missing = ", ".join(name for name in self.names if not self._present(first, name))
        return InputError(
            f"{type(self).__name__}: no {missing}{' (or .gz)' if '.gz' in self.suffixes else ''} in {first}"
            f"{''.join(f', and not all files in {folder}' for folder in others)}. {advice}, "
            f"or copy the files of torchvision.datasets.{self.source.__name__} into {first}{self.remedy}."
        )
