"""The table of docs/conformance.md about the code that the papers' authors published: where it is, and how it differs.

The comparisons with files of theirs were made once, in float64, on random inputs (N, 8, 5, 7) over three steps of
training and in evaluation; the files are not part of this project. Tests redo what a package on PyPI allows.
"""

from dataclasses import dataclass

from references import REFERENCES

from normzoo.norms import layers

HEADING = "## Beside the code of the authors"
LEGEND = """\
Code that the authors of each paper published, as it was at one commit. *compared* says what of it ran beside the layer,
once, in float64, with the conventions of the last column set alike; the number is the largest `|a - b| / (1 + |b|)`
found. State is running statistics; gradients are those of the input, and of the parameters where both have them.
Files that fix float32, or name what torch no longer has, were edited for it.
*read* means that it did not run, and why: no number is claimed. *in tests* names the packages whose implementations
the tests compare, all of them by others.
"""


@dataclass(frozen=True)
class Code:
    """What the authors of a layer published.

    Args:
        where: owner/repository, commit and file, separated by spaces; empty where none was found.
        compared: what ran beside the layer, or why nothing did.
        differs: the conventions in which the code differs from the layer.
        largest: the largest difference where it ran.
    """

    where: str
    compared: str
    differs: str = ""
    largest: float | None = None


ALL = "outputs, gradients"
WITH_STATE = "outputs, gradients, state"
TF1 = "outputs, gradients, in the compatibility mode of TensorFlow 2.21"

AUTHORS: dict[str, Code] = {
    "BatchGroupNorm": Code("", "none found"),
    "BatchNorm": Code("", "none found"),
    "BatchRenorm": Code(
        "",
        "none found",
        "keras averages standard deviations, the layer variances; in the tests keras' average is replaced. keras "
        "has no schedule of its own for the bounds, and computes in float32",
    ),
    "FrozenBatchNorm": Code(
        "KaimingHe/deep-residual-networks a7026cb6d478e131b765b898c312e25f9f6dc031 README.md",
        "read: Caffe",
        "Caffe's BatchNorm with `use_global_stats` followed by Scale; statistics are computed after training over"
        " a large batch, without moving averages",
    ),
    "GhostBatchNorm": Code(
        "eladhoffer/bigBatch 0c69f288a6172a292aad2719e985a4eb80b8e33a main_gbn.py",
        "read: no layer, but a loop that passes the batch through the network in chunks",
        "chunks of 128 by default, here 32. `nn.BatchNorm2d` on such chunks ran: outputs, gradients and state equal "
        "to 4.1e-15",
    ),
    "L1BatchNorm": Code(
        "eladhoffer/norm_matters 3b103aaa4dad3a936e4c5d4f7e182ac95fbb6613 models/mean_bn.py",
        WITH_STATE,
        "no eps; momentum 0.1 is the weight of the old statistics; running statistics start at 0. "
        "`models/lp_norm.py` has another, which adds eps to the scale as the layer does and averages the inverse "
        "scale: outputs and gradients in training equal to 7.4e-15",
        2.3e-15,
    ),
    "MeanOnlyBatchNorm": Code(
        "openai/weightnorm 3503e68b84d27ac69f33e26517f2a5036153999c lasagne/nn.py",
        "read: Theano",
        "one layer with weight normalization, whose gain belongs to the weight below; momentum 0.1 is the weight "
        "of the new mean, as here. `MeanBN` of eladhoffer/norm_matters, by others, where 0.1 is the weight of the"
        " old mean, ran: outputs, gradients and state equal to 3.1e-16",
    ),
    "MovingAverageBatchNorm": Code(
        "megvii-model/MABN 995e8f5af82ced88394166a322766a5378ece969 MABN.py",
        "outputs, gradients, state over 1,020 steps",
        "momentum 0.98 is the weight of the old statistics; batch statistics during `warmup_iters`, 100 by "
        "default, here none; r is clamped to 5 after 1,000 steps, here to 3 by default; the convolutions' weights"
        " are centred",
        1.8e-15,
    ),
    "NoisyBatchNorm": Code("", "none found"),
    "OnlineNorm": Code(
        "Cerebras/online-normalization fe08b9f8e288d628eee4f9991e562cdb4f9e997b online-norm/numpy_on/online_norm_2d.py",
        "outputs, gradients of the input, state",
        "by default outputs are clamped to [-5, 5] (`ecm='ac'`), which the layer does not do: set to none to "
        "compare; layer scaling, the paper's, is the other choice",
        7.8e-16,
    ),
    "PowerNorm": Code(
        "sIncerass/powernorm 9ea6226a3203d5d6fcee07a5c6dec38ec6bc5e9f fairseq/modules/norms/mask_powernorm.py",
        WITH_STATE,
        "compared with one and two groups, with a warm-up of 0, 2 and 10 steps (10,000 by default, here 100). After "
        "the warm-up its gradient is divided by the root of the batch's own mean square, which algorithm 3 divides by "
        "the running one: put in its place to compare, else gradients differ by 0.76. In the warm-up the newest batch "
        "weighs 1 - (1 - 1 / step) decay in the running mean square, here 1 - decay: set alike to compare, else it "
        "differs by 0.18 after four steps, and the evaluation by 0.16. `nu` is stored divided by 1 - decay",
        3.4e-15,
    ),
    "RangeBatchNorm": Code(
        "eladhoffer/quantized.pytorch e09c447a50a6a4c7dabf6176f20c931422aefd67 models/modules/quantize.py",
        "outputs, gradients of the input, running mean, in training",
        "averages the ranges of 16 parts of the batch (`num_chunks`), here 1; with 16, outputs differ by 0.37. "
        "The scale has a further factor 0.5402; its inverse is averaged; momentum 0.1 is the weight of the old "
        "statistics; inputs, scale, parameters and gradients are quantized to 8 bits: switched off to compare",
        8.4e-16,
    ),
    "SplitBatchNorm": Code("", "none found: tensorflow/tpu, at 7dc921f, has no such layer"),
    "TorchBatchNorm": Code("", "torch's own kernel"),
    "VirtualBatchNorm": Code(
        "openai/improved-gan 4f5d1ec5c16a7eceb206f42bfc652693601e1d5c imagenet/model.py",
        TF1,
        "statistics per sample, weight 1 / (n + 1), since commit e0e5ffc; before it, those of the whole batch. gamma "
        "starts at random around 1; the reference is computed anew in every step, with a gradient",
        6.8e-16,
    ),
    "BatchChannelNorm": Code(
        "joe-siyuan-qiao/Batch-Channel-Normalization 0244c3e99417a511b60171fd86783c904d0132c0 "
        "imagenet/models/layers.py",
        WITH_STATE,
        "32 groups always",
        6.1e-15,
    ),
    "BatchInstanceNorm": Code(
        "hyeonseobnam/Batch-Instance-Normalization 96b4ff81d6b19279e0133f632fbc82577fc9e190 "
        "models/batchinstancenorm.py",
        WITH_STATE,
        "the training loop clips the gate after each step; here the forward pass does",
        1.0e-14,
    ),
    "InstanceBatchNorm": Code(
        "XingangPan/IBN-Net d1673389b36c1180cf9bc35ea8260d84046da915 ibnnet/modules.py",
        "outputs, gradients of the input, state",
        "",
        6.8e-16,
    ),
    "InstanceLayerNorm": Code(
        "taki0112/UGATIT d508e8f5188e47000d79d8aecada0cc9119e0d56 ops.py",
        TF1,
        "the gate is clipped after each step; here the forward pass does. znxlwm/UGATIT-pytorch, at b8c4251, takes "
        "unbiased variances: with biased ones in their place, outputs and gradients are equal to 6.0e-15",
        2.0e-15,
    ),
    "SwitchableNorm": Code(
        "switchablenorms/Switchable-Normalization 5472286952ba5519a7d3229d9ad899a5c1b2e5b1 "
        "devkit/ops/switchable_norm.py",
        "outputs, gradients, running mean; evaluation at the same running statistics; (N, C) and (N, C, H, W)",
        "unbiased variance of the instance, from which the others follow: biased one put in its place to compare."
        " momentum 0.9 (images) or 0.997 is the weight of the old statistics; the running variance is not that of"
        " the layer, which is unbiased, and starts at 0",
        2.0e-15,
    ),
    "DynamicErf": Code(
        "zlab-princeton/Derf 8dd9ea3cc70370f423a80a80af6f72466bc621db ViT/dynamic_erf.py",
        ALL,
        "",
        5.7e-16,
    ),
    "DynamicISRU": Code(
        "flxst/dynamic-activation-functions fb6586421456d1360346d28fb868ccaf877609ef "
        "Dynamic_Activation_Functions.ipynb",
        "outputs",
        "a function of numpy without parameters, which subtracts the mean of all values (here 0) and multiplies "
        "by a constant (here `weight`)",
        2.0e-16,
    ),
    "DynamicTanh": Code(
        "jiachenzhu/DyT aab5dde0bc1bdd4410f687dad404c87b31808f90 dynamic_tanh.py",
        ALL,
        "",
        4.0e-16,
    ),
    "LayerScale": Code(
        "facebookresearch/deit 7e160fe43f0252d17191b71cbb5826254114ea5b cait_models.py",
        "read: a product inside a block, not a layer of its own",
        "starts at 1e-4 by default, here at 0.1",
    ),
    "NoNorm": Code("", "nothing to compare"),
    "AdaNorm": Code(
        "lancopku/AdaNorm 546faea0c3297061d743482d690ccd7d51f1ac38 machine%20translation/fairseq/modules/layer_norm.py",
        ALL,
        "unbiased standard deviation, eps outside the root: biased one, and eps near 0, to compare. As published,"
        " with 8 channels, outputs differ by 0.068",
        1.3e-15,
    ),
    "ChannelLayerNorm": Code(
        "facebookresearch/ConvNeXt 048efcea897d999aed302f2639b6270aedf8d4c8 models/convnext.py",
        ALL,
        "eps 1e-6 by default, here 1e-5",
        7.0e-15,
    ),
    "DivisiveNorm": Code(
        "tensorflow/compression dda8cb4c4364e657d13491227e886ff8014f7243 tensorflow_compression/python/layers/gdn.py",
        "outputs, gradients of the input",
        "divides by the sum of absolute values by default (alpha and epsilon 1); the paper's root of the sum of "
        "squares, compared, is alpha 2, epsilon 0.5. gamma is transposed. jorge-pessoa/pytorch-gdn, by others, at "
        "58c3b67, is equal to 3.3e-16 too",
        3.1e-16,
    ),
    "EvoNormB0": Code(
        "tensorflow/tpu 7dc921f846c9e4071f3884b768a7ddf521272a49 models/official/resnet/resnet_model.py",
        f"{TF1}; evaluation at the same running variance",
        "the running variance is biased, here unbiased; decay 0.9 is the weight of the old one",
        1.0e-15,
    ),
    "EvoNormS0": Code(
        "tensorflow/tpu 7dc921f846c9e4071f3884b768a7ddf521272a49 models/official/resnet/resnet_model.py",
        TF1,
        "the most groups up to 32 that divide C, here with at least 4 channels each",
        4.4e-15,
    ),
    "FilterResponseNorm": Code(
        "",
        "none found by the authors",
        "google-research/google-research, by others, has it in TensorFlow (read: `cold_posterior_bnn/core/frn.py`"
        " at ccc94ce): eps 1e-6, not learned, inside the root",
    ),
    "GlobalResponseNorm": Code(
        "facebookresearch/ConvNeXt-V2 2553895753323c6fe0b2bf390683f5ea358a42b9 models/utils.py",
        ALL,
        "channels last; eps 1e-6 always",
        5.1e-15,
    ),
    "GroupNorm": Code(
        "facebookresearch/Detectron 04155a01a6ea68f22ac27c79a822066457941ece detectron/modeling/detector.py",
        "read: an operator of Caffe2, whose code is not there",
        "32 groups, eps 1e-5 by default; here the most groups up to 32 with at least 4 channels each",
    ),
    "InstanceNorm": Code(
        "DmitryUlyanov/texture_nets aad2cc6f8a998fedc77b64bdcfe1e2884aa0fb3e InstanceNormalization.lua",
        "read: Lua",
        "batch normalization of N C planes; eps 1e-5; weights start at random in [0, 1]",
    ),
    "LayerNorm": Code(
        "ryankiros/layer-norm 7a9a1bf7c6553b5a89949c5c860bdfc0937af483 layers.py",
        "read: Theano",
        "vectors (N, C) only; eps 1e-5 inside the root, as here",
    ),
    "LocalContextNorm": Code(
        "anthonymlortiz/lcn 57961c4086aae099f0d3d82fcad0529ecbf57fc0 local_context_norm.py",
        "outputs and gradients of the input in the interior of images (N, 8, 13, 14), windows of 3 and 5; outputs"
        " and gradients for windows above the image",
        "the window of position p is centred on p + 1, along both sides: padding shifted to compare, else outputs"
        " differ by 1.4. Near a border it takes the statistics of the nearest whole window; the statistics are "
        "under `no_grad`: given a gradient to compare; for a window above the image the variance is unbiased: "
        "biased one put in its place. Groups of 2 channels and windows of 227 by default",
        4.9e-15,
    ),
    "LocalResponseNorm": Code(
        "akrizhevsky/cuda-convnet2 3238bf0367f63eb370e897b9e5714794cb67ddc2 cudaconv3/src/conv_util.cu",
        "read: CUDA only",
        "the scale is divided by the size, as here; even windows reach further down, as here; offset 1 by default",
    ),
    "LpNorm": Code(
        "weiliu89/caffe 4817bf8b4200b35ada8ed0dc378dceaf38c539e4 src/caffe/layers/normalize_layer.cpp",
        "read: Caffe",
        "p = 2 only; eps inside the root; a learned scale follows, per channel or one; optionally over positions too",
    ),
    "PositionalNorm": Code(
        "Boyiliee/PONO 99c7d8dbf0f281aaf55b3906274c589d029d31ef pono_ms_torch.py",
        ALL,
        "unbiased variance: biased one put in its place to compare",
        8.5e-16,
    ),
    "RMSNorm": Code(
        "bzhangGo/rmsnorm 2e726f1a3f106bb719056422f4f9b6aca03d3ce6 rmsnorm_torch.py",
        ALL,
        "eps 1e-8 outside the root: near 0 to compare; optionally a bias, and part of the channels",
        3.7e-15,
    ),
    "ScaleNorm": Code(
        "tnq177/transformers_without_tears c2dfaaa93c2437a75f08b52de88b1132f78e7cad layers.py",
        ALL,
        "",
        2.1e-15,
    ),
    "SeeDNorm": Code("", "none found"),
    "CenteredWeightNorm": Code(
        "huangleiBuaa/CenteredWN 3fbb6453526554cbf26d36d5fc5a59976480b1f3 module_pytorch/CWN.py",
        "outputs, gradients of the weight",
        "adds 1e-5 to the norm: left out to compare, else outputs differ by 2.3e-7. The gain is one constant, "
        "1.414, or learned per channel",
        7.5e-17,
    ),
    "CosineNorm": Code("", "none found"),
    "ScaledWeightStandardization": Code(
        "google-deepmind/deepmind-research f5de0ede8430809180254ee957abf36ed62579ef nfnets/base.py",
        "outputs, gradients of the weight",
        "max(fan-in var, 1e-4) where the layer adds eps: eps near 0 to compare; the gain of the activation (`gamma`) "
        "is not part of it",
        4.3e-17,
    ),
    "SpectralNorm": Code(
        "pfnet-research/sngan_projection e84b1a5f604de5fec268f37c3f26478e80b7f475 source/functions/max_sv.py",
        "read: CUDA only",
        "sigma = u W v with the v from before the last update of u; torch and the layer compute v once more. eps "
        "1e-12 is added to norms; in evaluation it iterates too, without keeping u",
    ),
    "WeightNorm": Code(
        "openai/weightnorm 3503e68b84d27ac69f33e26517f2a5036153999c lasagne/nn.py",
        "read: Theano",
        "no eps, as here; optionally starts gain and bias from the first batch",
    ),
    "WeightStandardization": Code(
        "joe-siyuan-qiao/WeightStandardization d81e50d05ad449fe4b4b0a70d964a28050961dbb README.md",
        "outputs, gradients of the weight",
        "unbiased standard deviation, eps 1e-5 outside the root: biased one, and eps near 0, to compare. As "
        "published, with 72 entries per row, outputs differ by 0.0055. The later Batch-Channel-Normalization has "
        "eps inside the root",
        2.9e-16,
    ),
    "DecorrelatedBatchNorm": Code(
        "huangleiBuaa/IterNorm-pytorch 574b1247036106c40d199c73ab29785b16d05407 extension/normailzation/dbn.py",
        "outputs, gradients, running mean; running covariance after one batch and evaluation from it; one group",
        "`num_groups` is the number of channels of a group, and all groups share one mean and one covariance: "
        "equal for one group only. `DBN` averages the whitening matrix; `DBN2`, compared, the biased covariance "
        "with eps, where the layer averages the unbiased one without",
        9.3e-15,
    ),
    "IterativeNorm": Code(
        "huangleiBuaa/IterNorm-pytorch 574b1247036106c40d199c73ab29785b16d05407 "
        "extension/normailzation/iterative_normalization.py",
        "outputs, gradients, state; one and two groups",
        "one group by default, here groups of at most 64 channels",
        5.1e-15,
    ),
}


def section() -> str:
    """The heading, the legend, and a row for every layer."""
    rows = [row(name, AUTHORS.get(name, Code("", "not looked for"))) for name in layers()]
    titles = "| layer | authors' code | compared | largest | what differs | in tests |\n|---|---|---|---|---|---|"
    return "\n".join([HEADING, "", LEGEND, titles, *rows, ""])


def row(name: str, code: Code) -> str:
    """One row, its packages from the oracles of the layer."""
    packages = dict.fromkeys(oracle.package for oracle in REFERENCES[name].oracles.values())
    largest = "-" if code.largest is None else f"{code.largest:.1e}"
    cells = (name, link(code.where), code.compared, largest, code.differs or "-", ", ".join(packages) or "-")
    return f"| {' | '.join(cells)} |"


def link(where: str) -> str:
    """The file at its commit."""
    if not where:
        return "-"
    repository, commit, path = where.split()
    return f"[{repository}](https://github.com/{repository}/blob/{commit}/{path}) {commit[:7]}"
