"""A copy of a LightningModule whose steps leave no trace: computes a loss without touching the training."""

import copy
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.compile import to_uncompiled
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torchmetrics import Metric

from normzoo.distributed.gather import Ranks
from normzoo.errors import InputError
from normzoo.monitoring.layers import is_compiled
from normzoo.monitoring.manual import IdleStep, ignore
from normzoo.monitoring.random_state import same_random_numbers, set_random_state

PLAIN = (bool, int, float, complex, str, bytes, type(None))
HOLDING = (Tensor, list, tuple, dict, set, deque)
KEPT = {*vars(LightningModule()), "log", "log_dict"}
"""Further attributes of a copy that stay: its parameters, hooks and trainer, and where it logs to."""
NEEDED_BY = "InternalCovariateShift, LossLandscape and ActivationPercentiles"


class Replica:
    """Computes the loss of a LightningModule's own `training_step`, at its weights or at others.

    The copy shares the parameters. Its buffers, metrics, lists and all else are its own, what it logs is dropped, and
    the random number generators are restored after each step. It runs eagerly, in the precision of the training, and
    manual optimization makes no update.

    Args:
        trainer: the trainer of the module.
        module: the module.

    Raises:
        InputError: the module cannot be copied.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer = trainer
        self.original = module
        self.compiled = is_compiled(module)
        self.module = self.copied()

    def copied(self) -> LightningModule:
        """A copy that shares the parameters, the trainer, the data and the process groups."""
        module = self.original
        self.originals = list(module.modules())
        self.made_of = parts_of(module)
        attributes = [value for one in self.originals for value in vars(one).values()]
        groups = [value for value in attributes if dist.is_available() and isinstance(value, dist.ProcessGroup)]
        shared = [*module.parameters(), self.trainer, getattr(self.trainer, "datamodule", None), *groups]
        self.shared = {id(one): one for one in shared if one is not None}
        try:
            made = copy.deepcopy(module, dict(self.shared))
        except Exception as error:  # whatever an attribute of the user's raises
            raise InputError(
                f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}), which monitors that "
                f"compute the loss need: store no results of autograd, open files or processes in attributes of the "
                f"module."
            ) from error
        if names := drop_closures(made):
            rank_zero_warn(
                f"a copy of {type(module).__name__} leaves out the hooks of {', '.join(names)}, which are closures and "
                f"hold what belongs to the original: if the loss needs what they store, {NEEDED_BY} show another one. "
                f"Make them methods of a module."
            )
        with suppress(ValueError):  # it is not compiled as a whole
            made = to_uncompiled(made)
        made.trainer = cast(Trainer, Quiet(self.trainer))
        for name in ("log", "log_dict"):
            object.__setattr__(made, name, ignore)
        self.idle = IdleStep(module, made)
        self.call, self.copies = Call(made), list(made.modules())
        # Metrics have no part in the loss.
        self.pairs = [pair for pair in zip(self.originals, self.copies, strict=True) if not isinstance(pair[0], Metric)]
        self.own = [(one, dict(one._parameters), dict(one._buffers)) for _, one in self.pairs]
        self.checked: set[str] = set()
        return made

    def refresh(self) -> "Replica":
        """Updates the attributes of the copy to the present ones of the original: numbers, text, tensors, lists ..."""
        if parts_of(self.original) != self.made_of:
            self.module = self.copied()  # layers were added or removed
        copies = self.shared | {id(one): made for one, made in zip(self.originals, self.copies, strict=True)}
        for one, made in self.pairs:
            for name, value in nn.Module.__getstate__(one).items():  # without its compiled form
                if type(value) in PLAIN:
                    vars(made)[name] = value
                elif type(value) in HOLDING and name not in KEPT:
                    with suppress(Exception):  # whatever an attribute of the user's raises
                        vars(made)[name] = copy.deepcopy(value, copies)
        return self

    def weights(self) -> dict[str, Tensor]:
        """Copies of the trainable parameters, by name, that gradients can be taken with respect to."""
        named = self.original.named_parameters()
        return {name: p.detach().clone().requires_grad_() for name, p in named if p.requires_grad}

    def run(
        self,
        step: str,
        batch: Any,
        batch_idx: int = 0,
        weights: Mapping[str, Tensor] | None = None,
        *,
        random: dict[str, Any] | None = None,
    ) -> Any:
        """What a step returns, in the original's present mode (training or evaluation) and with its state.

        Each call starts from the same random numbers, buffers and plain attributes, after `refresh` from all others.
        The step may update its weights, buffers and batch in place: it works on copies, through which gradients pass.

        Args:
            step: "training_step", "validation_step" or "test_step".
            batch: the batch, which stays unchanged.
            batch_idx: its number.
            weights: parameters by name, instead of the original's.
            random: the state of the random number generators, as of `random_state`, instead of the present one.

        Raises:
            InputError: a `training_step` that takes `dataloader_iter`.
        """
        if step == "training_step" and step not in self.checked:
            refuse_own_batches(self.original)
        self.idle.begin()
        with ExitStack() as stack:
            stack.enter_context(same_random_numbers(self.module.device))
            if random is not None:
                set_random_state(random, self.module.device)
            if self.compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(self.trainer.precision_plugin.forward_context())
            stack.enter_context(self.present_state(weights or {}))
            if step not in self.checked:
                stack.enter_context(refuse(self.originals))
            if step == "training_step" and not self.original.automatic_optimization:
                stack.enter_context(explain_gradients(self.original))
            result = self.call(step, copied_batch(batch), batch_idx)
            self.checked.add(step)
            return result

    @contextmanager
    def present_state(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Gives the copy clones of the original's parameters, or of others, and of its buffers and plain attributes.

        As `torch.func.functional_call`, in less time.
        """
        clones: dict[int, Tensor] = {}
        if weights:
            clones = {id(p): weights[n].clone() for n, p in self.original.named_parameters() if n in weights}
        for one, made in self.pairs:
            vars(made).update({name: value for name, value in vars(one).items() if type(value) in PLAIN})
            for ours, theirs in ((made._parameters, one._parameters), (made._buffers, one._buffers)):
                for name, value in theirs.items():
                    if value is None:
                        continue
                    if id(value) not in clones:
                        clones[id(value)] = value.detach().requires_grad_(value.requires_grad).clone()
                    ours[name] = clones[id(value)]  # type: ignore[assignment] # not a Parameter: gradients pass
        try:
            yield
        finally:
            for made, parameters, buffers in self.own:
                made._parameters.update(parameters)
                made._buffers.update(buffers)

    @contextmanager
    def backward(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Gives the copy its weights once more: a backward pass may compute activations again (checkpointing)."""
        with ExitStack() as stack:
            if self.compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(self.present_state(weights))
            yield

    def losses(
        self, batch: Any, batch_idx: int = 0, weights: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor | None, list[tuple[Tensor, Collection[str]]]]:
        """The loss, and what each optimizer minimizes with the names of its parameters: scalars with their graphs.

        Automatic optimization has one loss, of all parameters. None where `training_step` skips the batch.
        """
        with torch.enable_grad():
            result = self.run("training_step", batch, batch_idx, weights)
        if not self.original.automatic_optimization:
            return self.idle.losses()
        loss = result.get("loss") if isinstance(result, Mapping) else result
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            return None, []
        return loss, [(loss, {name for name, _ in self.original.named_parameters()})]

    def loss(self, batch: Any, batch_idx: int = 0, weights: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """The loss, a scalar with its graph, of several optimizers the sum; None where the batch is skipped."""
        return self.losses(batch, batch_idx, weights)[0]

    def loss_and_gradients(
        self,
        ranks: Ranks,
        samples: int,
        batch: Any,
        batch_idx: int,
        weights: Mapping[str, Tensor],
        wanted: Sequence[str],
    ) -> tuple[Tensor, list[Tensor]] | None:
        """The mean loss over the samples of all ranks, and its gradients. All ranks must call it.

        Of several optimizers the sum of their losses, and for each parameter the gradient of its own optimizer's.

        Args:
            ranks: the processes that train together.
            samples: in this rank's batch.
            batch: what `training_step` takes, which stays unchanged.
            batch_idx: its number.
            weights: parameters by name.
            wanted: names of the parameters of the gradients.

        Returns:
            The loss, a scalar, and the gradients; None where `training_step` skips the batch.
        """
        loss, parts, found, failure = None, list[tuple[Tensor, Collection[str]]](), [], None
        try:
            loss, parts = self.losses(batch, batch_idx, weights)
        except Exception as error:  # all ranks receive it, and raise
            failure = error
        own = 0 if loss is None else samples
        total = sum(ranks.gather(own, failure))
        if total == 0:
            return None
        try:
            # Layers that synchronize exchange gradients in the backward pass: each rank's share counts from there on.
            share = next(iter(weights.values())).new_zeros(()) if loss is None else loss.detach() * (own / total)
            shares = [(one * (own / total), names) for one, names in parts]
            with self.backward(weights):
                found = [share, *gradients_of(shares, {name: weights[name] for name in wanted})]
        except Exception as error:
            failure = error
        whole, *gradients = ranks.total(found, failure)
        return whole, gradients


class Call(nn.Module):
    """A LightningModule as a module whose forward is one of its steps, for `functional_call`."""

    def __init__(self, module: LightningModule) -> None:
        super().__init__()
        self.module = module
        self.takes: dict[str, list[bool]] = {}

    def forward(self, step: str, batch: Any, batch_idx: int) -> Any:
        """Passes a step the arguments that it takes, by position, as Lightning does: users name them freely."""
        run = getattr(self.module, step)
        more = (("batch_idx", batch_idx), ("dataloader_idx", 0))
        if step not in self.takes:
            self.takes[step] = [is_param_in_hook_signature(run, n, min_args=i) for i, (n, _) in enumerate(more, 2)]
        with recurrent_weights(self.module):
            return run(batch, *(value for (_, value), taken in zip(more, self.takes[step], strict=True) if taken))


@contextmanager
def recurrent_weights(module: nn.Module) -> Iterator[None]:
    """Lets recurrent layers compute with the parameters that `functional_call` has set.

    torch's recurrent layers read their weights from a private list, which `functional_call` does not update.
    """
    layers = [one for one in module.modules() if isinstance(one, nn.RNNBase)]
    before = [one._flat_weights for one in layers]
    for one in layers:
        one._flat_weights = [getattr(one, name, None) for name in one._flat_weights_names]
    try:
        yield
    finally:
        for one, weights in zip(layers, before, strict=True):
            one._flat_weights = weights


def drop_closures(module: nn.Module) -> list[str]:
    """Removes the hooks of a copy that are closures, and returns the layers that had some, but for those of probes."""
    found: dict[str, None] = {}
    for name, one in module.named_modules():
        # torch has no public way to list hooks.
        for hooks in (one._forward_pre_hooks, one._forward_hooks, one._backward_pre_hooks, one._backward_hooks):
            for number in [number for number, hook in hooks.items() if getattr(hook, "__closure__", None)]:
                hook = hooks.pop(number)
                if not str(hook.__module__).startswith("normzoo."):
                    found[name] = None
    return list(found)


def gradients_of(losses: Sequence[tuple[Tensor, Collection[str]]], weights: Mapping[str, Tensor]) -> list[Tensor]:
    """The gradients of losses, each with respect to the weights that it names; zeros where a weight takes no part."""
    found: dict[str, Tensor] = {}
    for loss, names in losses:
        own = {name: weight for name, weight in weights.items() if name in names}
        if own:  # losses may share a part of their graphs
            of_loss = torch.autograd.grad(
                loss, list(own.values()), retain_graph=len(losses) > 1, allow_unused=True, materialize_grads=True
            )
            found |= zip(own, of_loss, strict=True)
    return [found[name] if name in found else torch.zeros_like(weight) for name, weight in weights.items()]


def has_own_loop(module: LightningModule) -> bool:
    """Whether `training_step` is missing, or does more than to compute the loss of a batch."""
    takes_loader = is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True)
    return takes_loader or not (module.automatic_optimization and is_overridden("training_step", module))


def refuse_own_batches(module: LightningModule) -> None:
    """Raises `InputError` if `training_step` fetches its batches itself."""
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise InputError(
            f"{type(module).__name__}.training_step takes its batches from dataloader_iter, so its loss cannot be "
            f"computed twice; remove {NEEDED_BY}."
        )


def parts_of(module: nn.Module) -> list[tuple[Any, ...]]:
    """All modules inside one, by identity, with the names of their parameters and buffers."""
    return [(id(one), *one._parameters, *one._buffers) for one in module.modules()]


def copied_batch(batch: Any) -> Any:
    """A copy of a batch. Plain tensors without `deepcopy`, which copies the whole memory that a view belongs to."""
    if type(batch) in (tuple, list) and all(map(is_plain, batch)):
        memories = {one.untyped_storage().data_ptr() for one in batch}
        if len(memories) == len(batch):  # none is a view of another
            return type(batch)(one.clone() for one in batch)
    return copy.deepcopy(batch)


def is_plain(value: Any) -> bool:
    """Whether a clone of a tensor is a full copy."""
    return type(value) is Tensor and value.is_contiguous() and not value.requires_grad and not vars(value)


def plain(batch: Any) -> Any:
    """A batch of tensors, tuples, lists and mappings for a checkpoint; None of anything else."""
    if isinstance(batch, Tensor):
        return batch.detach().cpu()
    if type(batch) in (tuple, list):
        parts = [plain(one) for one in batch]
        return None if any(p is None for p in parts) else type(batch)(parts)
    if type(batch) is dict:
        found = {key: plain(one) for key, one in batch.items()}
        return None if any(v is None for v in found.values()) else found
    return batch if type(batch) in (int, float, bool, str) else None


def size_of(batch: Any) -> int:
    """Bytes of the tensors in a batch."""
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return sum(size_of(one) for one in batch) if isinstance(batch, tuple | list) else 0


class Quiet:
    """A trainer as a training step sees it, but with loggers that write nothing."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.logger = DummyLogger()
        self.loggers = [self.logger]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)


@contextmanager
def explain_gradients(module: LightningModule) -> Iterator[None]:
    """Raises `InputError` for a training step that needs the gradients of its weights, which are None in a copy."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # clipping by hand
            yield
    except (AttributeError, TypeError) as error:
        if "NoneType" not in str(error):
            raise
        raise InputError(
            f"{type(module).__name__}.training_step fails on a copy that makes no update, where .grad of every "
            f"parameter is None ({error}): skip those whose .grad is None, or remove {NEEDED_BY}."
        ) from error


@contextmanager
def refuse(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Raises `InputError` if one of the modules runs: a step of the copy has called the original."""

    def check(module: nn.Module, args: Any) -> None:
        raise InputError(
            f"a copy of the LightningModule runs a {type(module).__name__} of the original, through a lambda, a "
            f"closure or a compiled function that is an attribute and holds the module. Make it a method, or remove "
            f"{NEEDED_BY}."
        )

    handles = [one.register_forward_pre_hook(check) for one in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
