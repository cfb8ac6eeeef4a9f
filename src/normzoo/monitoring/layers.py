"""Which parameters belong to a layer."""

from torch import nn


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """A module's own parameters that learn, and those that its weight is made of; not those of its children."""
    made = getattr(module, "parametrizations", None)
    own = [*module.parameters(recurse=False), *(made.parameters() if isinstance(made, nn.ModuleDict) else ())]
    return [p for p in own if p.requires_grad]
