"""Which warnings fail a test: ours do, the announcements of other libraries do not."""

import warnings

import pytest
import torch


@pytest.mark.parametrize(
    "category, module",
    [
        (DeprecationWarning, "lightning.pytorch.trainer"),
        (FutureWarning, "normzoo.tasks.classifier"),  # where the stack level points at the caller
        (UserWarning, "torch._dynamo.guards"),
    ],
)
def test_a_change_announced_by_another_library_fails_no_test(category: type[Warning], module: str) -> None:
    """A newer torch that warns of its own future must not break the suite."""
    warnings.warn_explicit("will change", category, f"{module}.py", 1, module=module, registry={})


@pytest.mark.parametrize("module", ["normzoo.monitoring.writer", "lightning.fabric.utilities"])
def test_a_warning_to_the_user_fails_a_test(module: str) -> None:
    """Our warnings go through Lightning's `rank_zero_warn`, so both modules count."""
    with pytest.raises(UserWarning):
        warnings.warn_explicit("look at this", UserWarning, f"{module}.py", 1, module=module, registry={})


@pytest.mark.parametrize("repeat", range(2))
def test_every_test_starts_from_the_same_random_state(repeat: int) -> None:
    """What a test draws does not depend on the tests before it."""
    assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(torch.initial_seed()).get_state())
    torch.randn(1)
