"""The training step of manual optimization, without its updates."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


class Idle:
    """An optimizer or a schedule as a training step sees it, but one that changes nothing.

    Args:
        original: the optimizer or the schedule.
        parameters: of an optimizer, the names of its parameters.
    """

    def __init__(self, original: Any, parameters: Collection[str] = ()) -> None:
        self.original = original
        self.parameters = parameters
        self.param_groups = [dict(group) for group in getattr(original, "param_groups", [])]  # a step may set the rate
        self.is_toggled_off = False  # as another one is toggled, its parameters receive no gradients
        self.pending: list[Tensor] = []  # the losses whose gradients it holds
        self.minimized: list[Tensor] = []  # those of its first update
        self.toggle_model: Callable[..., Any] = nullcontext

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        self.pending = []

    def step(self, closure: Callable[[], object] | None = None, *args: Any, **kwargs: Any) -> None:
        if callable(closure):  # a schedule may be given an epoch or a metric
            closure()
        self.minimized = self.minimized or [*self.pending]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


class IdleStep:
    """Lets a copy of a LightningModule run its training step without an update, and keeps the losses of a manual one.

    The loss of an optimizer is the sum of those that the step passes to `manual_backward` between the optimizer's
    `zero_grad`, or that of a module with all its parameters, and its first update, but for those while another one is
    toggled: what the gradients that it uses belong to. In a step in which no optimizer makes an update, as gradients
    accumulate, it is the sum of all.

    Args:
        original: the module.
        copy: the copy, whose methods are replaced.
    """

    def __init__(self, original: LightningModule, copy: LightningModule) -> None:
        self.original = original
        self.optimizers: list[Idle] = []
        self.is_known = True
        instead = {
            "optimizers": lambda use_pl_optimizer=True: (
                self.idle() if len(self.idle()) != 1 else self.idle()[0]  # as Lightning's
            ),
            "lr_schedulers": self.lr_schedulers,
            "manual_backward": self.backward,
            "toggle_optimizer": self.toggle,
            "untoggle_optimizer": self.untoggle,
            "clip_gradients": ignore,
        }
        for name, method in instead.items():
            object.__setattr__(copy, name, method)
        for name, module in copy.named_modules():
            object.__setattr__(module, "zero_grad", partial(self.zero_grad, f"{name}." if name else ""))

    def begin(self) -> None:
        """Forgets the losses of the step before."""
        self.optimizers = []

    def idle(self) -> list[Idle]:
        """The optimizers, from the moment in which the step needs them."""
        if not self.optimizers:
            found: Any = self.original.optimizers()
            names = {id(p): name for name, p in self.original.named_parameters()}
            for one in found if isinstance(found, list) else [found]:
                owned = [id(p) for group in one.param_groups for p in group["params"]]
                made = Idle(one, {names[key] for key in owned if key in names})
                made.toggle_model = partial(self.toggled, made)
                self.optimizers.append(made)
        return self.optimizers

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Keeps a loss for the optimizers."""
        for one in self.idle():
            if not one.is_toggled_off:
                one.pending.append(loss)

    def zero_grad(self, inside: str, set_to_none: bool = True) -> None:
        """Forgets the losses of the optimizers whose parameters are all inside a module."""
        for one in self.optimizers:
            if all(name.startswith(inside) for name in one.parameters):
                one.zero_grad()

    def toggle(self, optimizer: Idle) -> None:
        """Keeps losses for one optimizer only."""
        for one in self.optimizers:
            one.is_toggled_off = one is not optimizer

    def untoggle(self, optimizer: Idle) -> None:
        """Keeps losses for all again."""
        for one in self.optimizers:
            one.is_toggled_off = False

    @contextmanager
    def toggled(self, optimizer: Idle, sync_grad: bool = True) -> Iterator[None]:
        """Toggles an optimizer."""
        self.toggle(optimizer)
        yield
        self.untoggle(optimizer)

    def lr_schedulers(self) -> Any:
        """The schedules."""
        found: Any = self.original.lr_schedulers()
        return list(map(Idle, found)) if isinstance(found, list) else None if found is None else Idle(found)

    def losses(self) -> tuple[Tensor | None, list[tuple[Tensor, Collection[str]]]]:
        """The sum of all losses, and what each optimizer minimizes with the names of its parameters.

        Without those of optimizers that make no update, if another one does.
        """
        updates = [(one.minimized, one.parameters) for one in self.optimizers if one.minimized]
        found = updates or [(one.pending, one.parameters) for one in self.optimizers if one.pending]
        if not found:
            self.warn_once()
            return None, []
        distinct = {id(loss): loss for losses, _ in found for loss in losses}
        return total([*distinct.values()]), [(total(losses), names) for losses, names in found]

    def warn_once(self) -> None:
        """Warns that the step has no loss that is known."""
        if self.is_known:
            rank_zero_warn(
                f"{type(self.original).__name__}.training_step passes no loss to self.manual_backward: monitors that "
                f"compute the loss show nothing of it. Call self.manual_backward(loss) in place of loss.backward()."
            )
        self.is_known = False


def total(losses: Sequence[Tensor]) -> Tensor:
    """The sum of losses."""
    return sum(losses[1:], losses[0])


def ignore(*args: object, **kwargs: object) -> None:
    """Takes the place of a method that would leave a trace."""
