"""How a network that exists is run on data: batches from anywhere, on the network's device, without a trace."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.monitoring.layers import unwrapped
from normzoo.monitoring.random_state import same_random_numbers

Data = Iterable[Any] | LightningDataModule
"""Batches: inputs, (input, target) tuples or dictionaries; a DataLoader, a list, a generator; or a data module."""


def device_of(net: nn.Module) -> torch.device:
    """The device of a network: that of its first parameter or buffer.

    Raises:
        InputError: the network is on the meta device, which has no values.
    """
    devices = {tensor.device for tensors in (net.parameters(), net.buffers()) for tensor in tensors}
    if torch.device("meta") in devices:
        raise InputError(
            "the network is on the meta device and has no values: give it memory by net.to_empty(device='cpu'), and "
            "load its weights."
        )
    return next((tensor.device for tensor in [*net.parameters(), *net.buffers()]), torch.device("cpu"))


class Batches:
    """Batches as a network takes them, on its device.

    Args:
        loader: the batches.
        move: returns a batch on the device, after the transfer hooks.
    """

    def __init__(self, loader: Iterable[Any], move: Callable[[Any], Any]) -> None:
        self.loader, self.move = loader, move

    def __iter__(self) -> Iterator[Any]:
        return map(self.move, self.loader)


def batches(net: nn.Module, data: Data) -> Batches:
    """The batches of data, on the device of a network.

    Those of a LightningDataModule are its training batches, after its own transfer hooks; of other data those after the
    hooks of the network, if it is a LightningModule. `Batches` stay as they are.
    """
    if isinstance(data, Batches):
        return data
    hooks: Any = data if isinstance(data, LightningDataModule) else unwrapped(net)
    if not isinstance(hooks, LightningDataModule | LightningModule):
        hooks = LightningModule()
    loader: Any = data
    if isinstance(data, LightningDataModule):
        data.prepare_data()
        data.setup("fit")
        loader = data.train_dataloader()
    device = device_of(net)

    def move(batch: Any) -> Any:
        moved = hooks.transfer_batch_to_device(hooks.on_before_batch_transfer(batch, 0), device, 0)
        return hooks.on_after_batch_transfer(moved, 0)

    return Batches([loader] if isinstance(loader, Tensor | Mapping) else loader, move)


def predict(net: nn.Module, batch: Any) -> Any:
    """The output of a network for a batch, as Lightning predicts.

    By `predict_step` of a LightningModule that has one. Else by `forward`, with the first of a tuple or list, and with
    the values of a dictionary that its arguments name.

    Raises:
        InputError: a dictionary that the network does not take.
    """
    net = unwrapped(net)
    if isinstance(net, LightningModule) and is_overridden("predict_step", net):
        takes_index = is_param_in_hook_signature(net.predict_step, "batch_idx", min_args=2)
        return net.predict_step(batch, 0) if takes_index else net.predict_step(batch)
    if isinstance(batch, Mapping):
        names = signature(net.forward).parameters
        named = {name: batch[name] for name in names if name in batch}
        try:
            return net(**named) if named else net(batch)
        except (TypeError, AttributeError) as error:
            raise InputError(
                f"data yields dictionaries of {', '.join(map(repr, batch))}, which {type(net).__name__}.forward("
                f"{', '.join(names)}) does not take ({error}): give its inputs, such as "
                f"data=[batch['image'] for batch in loader]."
            ) from error
    return net(batch[0] if isinstance(batch, tuple | list) else batch)


@contextmanager
def evaluation(net: nn.Module, *, except_for: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Runs a network in evaluation mode and without gradients; its modes and all random numbers are restored.

    Eagerly, as hooks do not fire in compiled graphs.

    Args:
        net: the network.
        except_for: modules that run in training mode.
    """
    modes = {module: module.training for module in net.modules()}
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), same_random_numbers(device_of(net)):
            net.eval()
            for module in except_for:
                module.training = True
            yield
    finally:
        for module, training in modes.items():
            module.training = training
