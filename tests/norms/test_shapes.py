"""Shape, dtype and memory format: what goes in comes out."""

from typing import Any

import pytest
import torch
from laws import assert_close, law, on_images, tests_of
from subjects import C, Subject, arguments_of, state_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from normzoo.testing import formats, shapes
from normzoo.testing.shapes import outputs_on

globals().update(tests_of(shapes) | tests_of(formats))  # the laws that hold for layers outside the zoo, too


class KernelsOfOneDtype(TorchDispatchMode):
    """Asserts what torch's kernels require on a GPU, which a fake one does not check in all of them."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten.native_layer_norm.default, torch.ops.aten.native_group_norm.default):
            assert len({a.dtype for a in args if isinstance(a, Tensor)}) == 1, f"{func} got several dtypes"
        return func(*args, **(kwargs or {}))


# Without a driver, torch 2.8 aborts the process where a fake tensor of a GPU is expanded.
@pytest.mark.skipif(torch.__version__ < "2.9", reason="fake tensors of a GPU need a newer torch, or a driver")
@law()
def test_kernels_of_a_gpu(subject: Subject) -> None:
    """On a fake GPU, narrow inputs pass float32 layers: no kernel gets dtypes that it cannot combine."""
    with FakeTensorMode(), KernelsOfOneDtype():
        for x, y in outputs_on(subject, "cuda"):
            assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)


@law(when=lambda subject: on_images(subject) and "s/w" in subject.layer.facts.axes)
def test_windows_in_five_dimensions(subject: Subject) -> None:
    """A window that slides through a volume (N, C, D, H, W) is none in a row: it is what the formula makes of it."""
    for settings in subject.settings:
        layer, x = subject.build(settings), subject.input(sizes=(4, C, 2, 3, 4))
        expected = subject.reference.formula(x, state_of(layer), True, **arguments_of(layer, settings))
        assert_close(layer(x), expected, f"{settings}")
