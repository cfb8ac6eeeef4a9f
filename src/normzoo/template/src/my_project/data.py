"""The data: a folder of images."""

from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, random_split
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor


class Data(LightningDataModule):
    """Reads FOLDER/CLASS/*.png: a tenth of the images for validation, a tenth for the test, the rest for training."""

    input_shape, num_classes = (3, 8, 8), 10  # the network gets them

    def __init__(self, folder: str = "data/digits", batch_size: int = 64) -> None:
        super().__init__()
        self.folder, self.batch_size = Path(folder), batch_size

    def prepare_data(self) -> None:
        """Writes scikit-learn's 1,797 digits if there is no folder "digits"; it gets its name when all are written."""
        if self.folder.name == "digits" and not self.folder.exists():
            digits, part = load_digits(), self.folder.with_suffix(".part")
            for number, (pixels, label) in enumerate(zip(digits.images, digits.target)):
                (part / str(label)).mkdir(parents=True, exist_ok=True)
                Image.fromarray((pixels * 255 / 16).astype("uint8")).save(part / str(label) / f"{number:04}.png")
            part.rename(self.folder)

    def setup(self, stage: str) -> None:
        images = ImageFolder(str(self.folder), to_tensor)
        self.parts = random_split(images, [0.8, 0.1, 0.1], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[0], batch_size=self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[1], batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[2], batch_size=self.batch_size)

    predict_dataloader = test_dataloader
