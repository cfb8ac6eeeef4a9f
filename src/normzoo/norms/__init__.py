"""The zoo: every layer takes `Layer(num_features, *, ...)` and `(N, C, *)`, and carries its `facts`.

A new layer is one line here; the command line, the tests and the catalogue find it through `layers()`.
"""

from normzoo.norms._base import Facts as Facts
from normzoo.norms._base import Norm as Norm
from normzoo.norms._base import Paper as Paper
from normzoo.norms.batch.batch_norm import BatchNorm as BatchNorm
from normzoo.norms.batch.batch_renorm import BatchRenorm as BatchRenorm
from normzoo.norms.batch.ghost_batch_norm import GhostBatchNorm as GhostBatchNorm
from normzoo.norms.batch.torch_batch_norm import TorchBatchNorm as TorchBatchNorm
from normzoo.norms.pointwise.dynamic_tanh import DynamicTanh as DynamicTanh
from normzoo.norms.pointwise.no_norm import NoNorm as NoNorm
from normzoo.norms.sample.channel_layer_norm import ChannelLayerNorm as ChannelLayerNorm
from normzoo.norms.sample.filter_response_norm import FilterResponseNorm as FilterResponseNorm
from normzoo.norms.sample.group_norm import GroupNorm as GroupNorm
from normzoo.norms.sample.instance_norm import InstanceNorm as InstanceNorm
from normzoo.norms.sample.layer_norm import LayerNorm as LayerNorm
from normzoo.norms.sample.rms_norm import RMSNorm as RMSNorm
from normzoo.norms.weight.weight_norm import WeightNorm as WeightNorm
from normzoo.norms.weight.weight_standardization import WeightStandardization as WeightStandardization


def layers() -> dict[str, type[Norm]]:
    """Every layer of the zoo by its name."""
    found = {name: value for name, value in globals().items() if isinstance(value, type) and issubclass(value, Norm)}
    del found["Norm"]
    return found


__all__ = ["Facts", "Norm", "Paper", "layers", *layers()]
