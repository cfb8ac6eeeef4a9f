"""The zoo: every layer takes `Layer(num_features, *, ...)` and `(N, C, *)`, and carries its `facts`.

A new layer is one line here; the command line, the tests and the catalogue find it through `layers()`.
"""

from normzoo.norms._base import Facts as Facts
from normzoo.norms._base import Norm as Norm
from normzoo.norms._base import Paper as Paper
from normzoo.norms.batch.batch_group_norm import BatchGroupNorm as BatchGroupNorm
from normzoo.norms.batch.batch_norm import BatchNorm as BatchNorm
from normzoo.norms.batch.batch_renorm import BatchRenorm as BatchRenorm
from normzoo.norms.batch.frozen_batch_norm import FrozenBatchNorm as FrozenBatchNorm
from normzoo.norms.batch.ghost_batch_norm import GhostBatchNorm as GhostBatchNorm
from normzoo.norms.batch.l1_batch_norm import L1BatchNorm as L1BatchNorm
from normzoo.norms.batch.mean_only_batch_norm import MeanOnlyBatchNorm as MeanOnlyBatchNorm
from normzoo.norms.batch.moving_average_batch_norm import MovingAverageBatchNorm as MovingAverageBatchNorm
from normzoo.norms.batch.noisy_batch_norm import NoisyBatchNorm as NoisyBatchNorm
from normzoo.norms.batch.online_norm import OnlineNorm as OnlineNorm
from normzoo.norms.batch.power_norm import PowerNorm as PowerNorm
from normzoo.norms.batch.range_batch_norm import RangeBatchNorm as RangeBatchNorm
from normzoo.norms.batch.split_batch_norm import SplitBatchNorm as SplitBatchNorm
from normzoo.norms.batch.torch_batch_norm import TorchBatchNorm as TorchBatchNorm
from normzoo.norms.batch.virtual_batch_norm import VirtualBatchNorm as VirtualBatchNorm
from normzoo.norms.mixed.batch_channel_norm import BatchChannelNorm as BatchChannelNorm
from normzoo.norms.mixed.batch_instance_norm import BatchInstanceNorm as BatchInstanceNorm
from normzoo.norms.mixed.instance_batch_norm import InstanceBatchNorm as InstanceBatchNorm
from normzoo.norms.mixed.instance_layer_norm import InstanceLayerNorm as InstanceLayerNorm
from normzoo.norms.mixed.switchable_norm import SwitchableNorm as SwitchableNorm
from normzoo.norms.pointwise.dynamic_erf import DynamicErf as DynamicErf
from normzoo.norms.pointwise.dynamic_isru import DynamicISRU as DynamicISRU
from normzoo.norms.pointwise.dynamic_tanh import DynamicTanh as DynamicTanh
from normzoo.norms.pointwise.layer_scale import LayerScale as LayerScale
from normzoo.norms.pointwise.no_norm import NoNorm as NoNorm
from normzoo.norms.sample.ada_norm import AdaNorm as AdaNorm
from normzoo.norms.sample.channel_layer_norm import ChannelLayerNorm as ChannelLayerNorm
from normzoo.norms.sample.divisive_norm import DivisiveNorm as DivisiveNorm
from normzoo.norms.sample.evo_norm_b0 import EvoNormB0 as EvoNormB0
from normzoo.norms.sample.evo_norm_s0 import EvoNormS0 as EvoNormS0
from normzoo.norms.sample.filter_response_norm import FilterResponseNorm as FilterResponseNorm
from normzoo.norms.sample.global_response_norm import GlobalResponseNorm as GlobalResponseNorm
from normzoo.norms.sample.group_norm import GroupNorm as GroupNorm
from normzoo.norms.sample.instance_norm import InstanceNorm as InstanceNorm
from normzoo.norms.sample.layer_norm import LayerNorm as LayerNorm
from normzoo.norms.sample.local_context_norm import LocalContextNorm as LocalContextNorm
from normzoo.norms.sample.local_response_norm import LocalResponseNorm as LocalResponseNorm
from normzoo.norms.sample.lp_norm import LpNorm as LpNorm
from normzoo.norms.sample.positional_norm import PositionalNorm as PositionalNorm
from normzoo.norms.sample.rms_norm import RMSNorm as RMSNorm
from normzoo.norms.sample.scale_norm import ScaleNorm as ScaleNorm
from normzoo.norms.sample.see_d_norm import SeeDNorm as SeeDNorm
from normzoo.norms.weight.centered_weight_norm import CenteredWeightNorm as CenteredWeightNorm
from normzoo.norms.weight.cosine_norm import CosineNorm as CosineNorm
from normzoo.norms.weight.scaled_weight_standardization import (
    ScaledWeightStandardization as ScaledWeightStandardization,
)
from normzoo.norms.weight.spectral_norm import SpectralNorm as SpectralNorm
from normzoo.norms.weight.weight_norm import WeightNorm as WeightNorm
from normzoo.norms.weight.weight_standardization import WeightStandardization as WeightStandardization
from normzoo.norms.whitening.decorrelated_batch_norm import DecorrelatedBatchNorm as DecorrelatedBatchNorm
from normzoo.norms.whitening.iterative_norm import IterativeNorm as IterativeNorm


def layers() -> dict[str, type[Norm]]:
    """Every layer of the zoo by its name."""
    found = {name: value for name, value in globals().items() if isinstance(value, type) and issubclass(value, Norm)}
    del found["Norm"]
    return found


__all__ = ["Facts", "Norm", "Paper", "layers", *layers()]
