"""A generative adversarial network: manual optimization with two optimizers, on points of a ring."""

from collections.abc import Callable
from itertools import pairwise

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from normzoo.norms import BatchNorm, Norm


def mlp(sizes: list[int], norm: Callable[[int], Norm]) -> nn.Sequential:
    hidden = [(nn.Linear(a, b), norm(b), nn.LeakyReLU(0.2)) for a, b in pairwise(sizes[:-1])]
    return nn.Sequential(*(layer for block in hidden for layer in block), nn.Linear(*sizes[-2:]))


class GAN(LightningModule):
    def __init__(self, latent: int = 8, width: int = 64, norm: Callable[[int], Norm] = BatchNorm) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.latent = latent
        self.generator = mlp([latent, width, width, 2], norm)
        self.critic = mlp([2, width, width, 1], norm)

    def train_dataloader(self) -> DataLoader:
        angle = 2 * torch.pi * torch.rand(2000)
        ring = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(2000, 2)
        return DataLoader(TensorDataset(ring), batch_size=100, shuffle=True)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        generator, critic = self.optimizers()
        (real,) = batch
        fake = self.generator(torch.randn(len(real), self.latent, device=self.device))

        self.toggle_optimizer(critic)
        of_real, of_fake = self.critic(real), self.critic(fake.detach())
        loss_critic = score(of_real, 1) + score(of_fake, 0)
        critic.zero_grad()
        self.manual_backward(loss_critic)
        critic.step()
        self.untoggle_optimizer(critic)

        self.toggle_optimizer(generator)
        loss_generator = score(self.critic(fake), 1)
        generator.zero_grad()
        self.manual_backward(loss_generator)
        generator.step()
        self.untoggle_optimizer(generator)
        self.log_dict({"loss/critic": loss_critic, "loss/generator": loss_generator}, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(net.parameters(), 1e-3, (0.5, 0.9)) for net in (self.generator, self.critic)]


def score(logits: Tensor, truth: float) -> Tensor:
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))
