"""Layers of torch, torchvision and timm, and which of ours takes their arguments.

`tests/norms/test_arguments.py` holds the signatures beside each other; `scripts/docs` writes the table.
"""

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import Parameter

from normzoo import norms
from normzoo.norms import Norm

WIDTH = ("num_features", "num_channels", "normalized_shape", "channels", "dim")
FACTORY = ("device", "dtype")


@dataclass(frozen=True)
class Counterpart:
    """A layer of another library and ours.

    Args:
        theirs: its dotted path.
        ours: our layer.
        how: how ours is built to compute the same, where its name is not enough.
        moved: arguments that we take by name, or at another position -> why.
        others: arguments with another default -> why.
        names: arguments that have two names in ours -> the one that has their position and default.
        absent: arguments that we do not take -> what to do instead.
    """

    theirs: str
    ours: type[Norm]
    how: str = ""
    moved: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def package(self) -> str:
        return self.theirs.partition(".")[0]

    def signature(self) -> dict[str, Parameter]:
        """Their parameters by our names, without `**kwargs`."""
        module, _, name = self.theirs.rpartition(".")
        found = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
        kept = [p for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        first = next((p.name for p in kept if p.name in WIDTH and p.default is p.empty), None)
        return {"num_features" if p.name == first else p.name: p for p in kept}

    def ordered(self) -> list[str]:
        """The arguments that ours must take at their positions, after `num_features`."""
        kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        theirs = [name for name, p in self.signature().items() if p.kind in kinds and name != "num_features"]
        return [self.names.get(name, name) for name in theirs if name not in (*self.moved, *self.absent)]


ONE_EPS = {"eps": "1e-5, that of every layer here"}
FITTING = {"num_groups": "None: the most that fit, up to 32"}
ELEMENTWISE = {"elementwise_affine": "affine"}
PARAMETRIZATION = {
    "module": "networks attach the layer; by hand, `torch.nn.utils.parametrize.register_parametrization`",
    "name": "the name of the parameter, which `register_parametrization` takes",
}

COUNTERPARTS = (
    *(Counterpart(f"torch.nn.BatchNorm{n}d", norms.BatchNorm) for n in (1, 2, 3)),
    Counterpart("torch.nn.BatchNorm2d", norms.TorchBatchNorm),
    Counterpart(
        "torch.nn.SyncBatchNorm",
        norms.BatchNorm,
        "BatchNorm(C, sync=True)",
        moved={"process_group": "by name, so that `device` and `dtype` are where BatchNorm2d has them"},
    ),
    Counterpart(
        "torch.nn.GroupNorm",
        norms.GroupNorm,
        moved={"num_groups": "after `num_features`, which is first in every layer here, as in timm"},
        others=FITTING,
    ),
    Counterpart("torch.nn.LayerNorm", norms.ChannelLayerNorm, "ChannelLayerNorm(C, channel_dim=-1)", names=ELEMENTWISE),
    Counterpart("torch.nn.LayerNorm", norms.LayerNorm, "LayerNorm([C, H, W])", names=ELEMENTWISE),
    *(
        Counterpart(
            f"torch.nn.InstanceNorm{n}d", norms.InstanceNorm, others={"affine": "True, that of every layer here"}
        )
        for n in (1, 2, 3)
    ),
    Counterpart("torch.nn.RMSNorm", norms.RMSNorm, "RMSNorm(C, channel_dim=-1)", others=ONE_EPS, names=ELEMENTWISE),
    Counterpart(
        "torch.nn.LocalResponseNorm",
        norms.LocalResponseNorm,
        others={"size": "5, the paper's", "alpha": "the paper's 1e-4 times the size", "k": "2, the paper's"},
    ),
    Counterpart("torch.nn.utils.parametrizations.weight_norm", norms.WeightNorm, absent=PARAMETRIZATION),
    Counterpart(
        "torch.nn.utils.parametrizations.spectral_norm",
        norms.SpectralNorm,
        others={"dim": "0; give 1 for a transposed convolution, which torch looks up in the module"},
        absent=PARAMETRIZATION,
    ),
    Counterpart("torchvision.ops.FrozenBatchNorm2d", norms.FrozenBatchNorm),
    Counterpart("timm.layers.GroupNorm", norms.GroupNorm, others=FITTING),
    Counterpart("timm.layers.GroupNorm1", norms.LayerNorm),
    Counterpart("timm.layers.LayerNorm", norms.ChannelLayerNorm, "ChannelLayerNorm(C, channel_dim=-1)", others=ONE_EPS),
    Counterpart("timm.layers.LayerNorm2d", norms.ChannelLayerNorm, others=ONE_EPS),
    Counterpart("timm.layers.RmsNorm", norms.RMSNorm, "RMSNorm(C, channel_dim=-1)", others=ONE_EPS),
    Counterpart("timm.layers.RmsNorm2d", norms.RMSNorm, others=ONE_EPS),
    Counterpart(
        "timm.layers.grn.GlobalResponseNorm",
        norms.GlobalResponseNorm,
        "GlobalResponseNorm(C, channel_dim=-1)",
        others=ONE_EPS,
        absent={"channels_last": "`channel_dim=-1`"},
    ),
    Counterpart("timm.layers.SplitBatchNorm2d", norms.SplitBatchNorm),
    Counterpart(
        "timm.layers.LayerScale",
        norms.LayerScale,
        "LayerScale(C, channel_dim=-1)",
        others={"init_values": "0.1, for networks of a few layers"},
        absent={"inplace": "the result is a new tensor"},
    ),
)
