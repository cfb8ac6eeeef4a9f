"""Which module computes each tensor of a network and which modules read it, seen while the network runs once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# The documented base class of modes that see every operation; torch has not given it a public path.
from torch.utils._python_dispatch import TorchDispatchMode

from normzoo.monitoring.probe import tensors
from normzoo.surgery._batches import evaluation, predict


@dataclass
class Flow:
    """What happened while a network ran once.

    Args:
        inputs: module -> the tensors that it took in each of its calls.
        outputs: module -> the result of each of its calls.
        readers: id of a tensor -> for each operation that took it the modules that were running, the outermost first.
        result: what the network returned.
    """

    inputs: dict[nn.Module, list[list[Tensor]]] = field(default_factory=dict)
    outputs: dict[nn.Module, list[Any]] = field(default_factory=dict)
    readers: dict[int, list[tuple[nn.Module, ...]]] = field(default_factory=dict)
    result: Any = None
    kept: list[Any] = field(default_factory=list)  # a tensor that is freed would give its id to another

    def runs_once(self, module: nn.Module) -> bool:
        """Whether a module ran once, from one tensor to another."""
        taken, returned = self.inputs.get(module, []), self.outputs.get(module, [])
        return len(taken) == 1 == len(taken[0]) and isinstance(returned[0], Tensor)

    def input(self, module: nn.Module) -> Tensor:
        """What a module that runs once takes."""
        return self.inputs[module][0][0]

    def output(self, module: nn.Module) -> Tensor:
        """What a module that runs once returns."""
        tensor: Tensor = self.outputs[module][0]
        return tensor

    def is_returned(self, tensor: Tensor) -> bool:
        """Whether the network returned a tensor itself."""
        return any(one is tensor for one in tensors(self.result))


class Recorder(TorchDispatchMode):
    """Notes which modules are running whenever an operation takes a tensor."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch has not typed it
        self.flow = flow
        self.running: list[nn.Module] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tensors((args, kwargs)):
            self.flow.readers.setdefault(id(tensor), []).append((*self.running,))
        result = func(*args, **(kwargs or {}))
        self.flow.kept.append((args, kwargs, result))
        return result

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook."""
        self.running.append(module)
        self.flow.inputs.setdefault(module, []).append([*tensors((args, kwargs))])

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A forward hook."""
        self.running.pop()
        self.flow.outputs.setdefault(module, []).append(output)


def flow(net: nn.Module, example: Any) -> Flow:
    """Runs a network on an example, in evaluation mode, and returns what happened."""
    recorder = Recorder(Flow())
    hooks = [hook for module in net.modules() for hook in hooks_of(module, recorder)]
    try:
        with evaluation(net), recorder:
            recorder.flow.result = predict(net, example)
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.flow


def hooks_of(module: nn.Module, recorder: Recorder) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """The hooks that tell a recorder when a module runs."""
    yield module.register_forward_pre_hook(recorder.enter, with_kwargs=True)
    yield module.register_forward_hook(recorder.leave)
