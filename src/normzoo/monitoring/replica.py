"""A copy of a LightningModule whose training steps leave no trace: to look at a loss without touching the training."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from normzoo.distributed.gather import Ranks
from normzoo.errors import InputError
from normzoo.monitoring.probe import is_compiled, walk
from normzoo.monitoring.random_state import random_state, set_each

PLAIN = (bool, int, float, complex, str, bytes, type(None))


class Replica:
    """Computes the loss of a LightningModule's own `training_step`, at its weights or at others.

    The copy shares the parameters. Its buffers, metrics, lists and everything else are its own, what it logs goes
    nowhere, and the random numbers that it draws are drawn again by whoever comes next. It runs eagerly, and in the
    precision of the training.

    Args:
        trainer: which trains the module.
        module: the module.

    Raises:
        InputError: the module cannot be copied, or optimizes by hand within its `training_step`.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        if not module.automatic_optimization:
            raise InputError(
                f"{type(module).__name__}(automatic_optimization=False): its training_step moves the weights, so that "
                f"its loss cannot be looked at; leave out InternalCovariateShift, LossLandscape and "
                f"ActivationPercentiles, and do not compile the network while others monitor it."
            )
        if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
            raise InputError(
                f"{type(module).__name__}.training_step takes batches from dataloader_iter by itself, so that its loss "
                f"cannot be looked at twice; leave out InternalCovariateShift, LossLandscape and ActivationPercentiles."
            )
        self.trainer = trainer
        self.original = module
        self.compiled = is_compiled(module)
        self.takes: dict[str, list[bool]] = {}
        self.module = self.copied(module)

    def copied(self, module: LightningModule) -> LightningModule:
        """A copy that shares the parameters, the trainer and the data."""
        shared = [*module.parameters(), self.trainer, getattr(self.trainer, "datamodule", None), *process_groups()]
        try:
            made = copy.deepcopy(module, {id(one): one for one in shared if one is not None})
        except Exception as error:  # whatever an attribute of the user's raises
            raise InputError(
                f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}), which monitors that look "
                f"at the loss need: keep no results of autograd, open files or processes as attributes of the module."
            ) from error
        for name in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
            if getattr(module, "_compiler_ctx", None) is not None:  # Lightning has put compiled ones over them
                made.__dict__.pop(name, None)
        made._trainer = cast(Trainer, Quiet(self.trainer))
        for name in ("log", "log_dict"):
            object.__setattr__(made, name, ignore)
        named, copies = module.named_modules(), walk(made)
        self.pairs = [(f"{name}." if name else "", one, copy) for (name, one), copy in zip(named, copies, strict=True)]
        self.then = [one for _, one, _ in self.pairs]
        self.takes.clear()
        return made

    def refresh(self) -> "Replica":
        """Brings the copy to where its original is now."""
        original = self.original
        here = list(walk(original))
        if len(here) != len(self.then) or any(one is not then for one, then in zip(here, self.then, strict=True)):
            self.module = self.copied(original)  # layers were put in or taken out
        for _, one, made in self.pairs:
            made._parameters = dict(one._parameters)
            for name, value in one.__dict__.items():
                if type(value) in PLAIN:
                    made.__dict__[name] = value
            for name, buffer in one._buffers.items():
                made._buffers[name] = None if buffer is None else buffer.detach().clone()
        return self

    @contextmanager
    def at(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """With other weights in the place of the original's, and with the original's where none are given.

        All are copies, as a step may clip its weights in place; gradients pass through them. A weight that stands in
        several places is one.
        """
        copies: dict[int, Tensor] = {}
        for prefix, one, made in self.pairs:
            for name, p in one._parameters.items():
                if p is not None:
                    if id(p) not in copies:
                        here = weights.get(prefix + name)
                        own = p.detach().requires_grad_(p.requires_grad) if here is None else here
                        copies[id(p)] = own.clone()
                    made._parameters[name] = copies[id(p)]  # type: ignore[assignment] # computed, hence no Parameter
            update_list_of_weights(made)
        try:
            yield
        finally:
            for _, one, made in self.pairs:
                made._parameters = dict(one._parameters)
                update_list_of_weights(made)

    def call(self, step: str, batch: Any, batch_idx: int) -> Any:
        """A step with the arguments it takes, by position, as Lightning does: a user may call them anything."""
        run = getattr(self.module, step)
        more = (("batch_idx", batch_idx), ("dataloader_idx", 0))
        if step not in self.takes:
            self.takes[step] = [is_param_in_hook_signature(run, n, min_args=i) for i, (n, _) in enumerate(more, 2)]
        return run(batch, *(value for (_, value), taken in zip(more, self.takes[step], strict=True) if taken))

    @contextmanager
    def quietly(self, random_state: Tensor | None) -> Iterator[None]:
        """As the training is: in its precision; and the random numbers afterwards as before."""
        plugin = self.trainer.precision_plugin
        with ExitStack() as stack:
            stack.enter_context(same_random_numbers(self.module.device))
            if random_state is not None:
                torch.set_rng_state(random_state)
            stack.enter_context(torch.compiler.set_stance("force_eager") if self.compiled else nullcontext())
            stack.enter_context(plugin.forward_context())
            yield

    def run(
        self,
        step: str,
        batch: Any,
        batch_idx: int = 0,
        weights: Mapping[str, Tensor] | None = None,
        *,
        random_state: Tensor | None = None,
        is_fresh: bool = False,
    ) -> Any:
        """What a step returns, in the original's present mode (training or evaluation), gradients recorded as there.

        Each time from the same random numbers, buffers and plain attributes.

        Args:
            step: "training_step", "validation_step" or "test_step".
            batch: what it takes; it is left as it is.
            batch_idx: its number.
            weights: parameters by name, in the place of the original's.
            random_state: of torch's generator, in the place of the present one.
            is_fresh: whether the copy has just been refreshed.
        """
        if not is_fresh:
            self.refresh()
        with self.quietly(random_state), self.at(weights or {}), untouched(self.then):
            return self.call(step, copied_batch(batch), batch_idx)

    def loss(self, batch: Any, batch_idx: int = 0, weights: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """What `training_step` returns as the loss: a scalar with its graph; None where it skips the batch."""
        with torch.enable_grad():
            result = self.run("training_step", batch, batch_idx, weights)
        loss = result.get("loss") if isinstance(result, Mapping) else result
        return loss if isinstance(loss, Tensor) and loss.requires_grad else None

    def loss_and_gradients(
        self,
        ranks: Ranks,
        samples: int,
        batch: Any,
        batch_idx: int,
        weights: Mapping[str, Tensor],
        wanted: Sequence[str],
    ) -> tuple[Tensor, list[Tensor]] | None:
        """The loss of the batches of all ranks, each sample counting once, and its gradients. All ranks call it.

        Args:
            ranks: which train together.
            samples: in this rank's batch.
            batch: what `training_step` takes; it is left as it is.
            batch_idx: its number.
            weights: parameters by name.
            wanted: names of those whose gradients are asked for.

        Returns:
            The loss, a scalar, and the gradients; None where `training_step` skips the batch.
        """
        loss, found, trouble = None, [], None
        try:
            loss = self.loss(batch, batch_idx, weights)
        except Exception as error:  # all ranks hear of it, and end together
            trouble = error
        own = 0 if loss is None else samples
        total = sum(ranks.gather(own, trouble))
        if total == 0:
            return None
        try:
            # Layers that synchronize exchange gradients in the backward pass: each rank's share counts from there on.
            share = weights[wanted[0]].new_zeros(()) if loss is None else loss * (own / total)
            asked = [weights[name] for name in wanted]
            found = [
                share.detach(),
                *(
                    torch.autograd.grad(share, asked, allow_unused=True, materialize_grads=True)
                    if loss is not None
                    else map(torch.zeros_like, asked)
                ),
            ]
        except Exception as error:
            trouble = error
        whole, *gradients = ranks.total(found, trouble)
        return whole, gradients


def copied_batch(batch: Any) -> Any:
    """A copy to work on. Of plain tensors without `deepcopy`, which takes longer than a small network."""
    if type(batch) in (tuple, list) and all(map(is_plain, batch)):
        memories = {one.untyped_storage().data_ptr() for one in batch}
        if len(memories) == len(batch):  # none is a view of another
            return type(batch)(one.clone() for one in batch)
    return copy.deepcopy(batch)


def is_plain(value: Any) -> bool:
    """Whether a clone of a tensor is all there is to copy."""
    return type(value) is Tensor and value.is_contiguous() and not value.requires_grad and not vars(value)


def process_groups() -> list[Any]:
    """Groups of ranks, which metrics hold once they have been synchronized; they cannot be copied."""
    if not (dist.is_available() and dist.is_initialized()):
        return []
    return [*dist.distributed_c10d._world.pg_map, dist.group.WORLD]


class Quiet:
    """A trainer as a training step sees it, but with loggers that write nothing."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.logger = DummyLogger()
        self.loggers = [self.logger]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)


@contextmanager
def untouched(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Raises `InputError` if one of the modules runs: a copy's step has led back to the original."""
    originals = set(map(id, modules))

    def refuse(module: nn.Module, args: Any) -> None:
        if id(module) in originals:
            raise InputError(
                f"a copy of the LightningModule runs a {type(module).__name__} of the original: through a lambda, a "
                f"closure or a compiled function that is an attribute and holds the module. Make it a method, or leave "
                f"out InternalCovariateShift, LossLandscape and ActivationPercentiles."
            )

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def update_list_of_weights(module: nn.Module) -> None:
    """A recurrent layer computes by a list of its weights, which it makes when they are set as attributes."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def ignore(*args: object, **kwargs: object) -> None:
    """In the place of `self.log`."""


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Has all generators draw afterwards what they would have drawn now."""
    state = random_state(device)
    try:
        yield
    finally:
        set_each(state, device)
