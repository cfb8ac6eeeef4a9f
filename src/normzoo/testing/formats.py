"""Dtype, strides and memory format: what goes in comes out."""

import copy
from itertools import product

import torch

from normzoo.testing._compare import assert_close, assert_same_buffers, short
from normzoo.testing._law import expect, law
from normzoo.testing._subject import Subject, few_and_many

OTHER_STRIDES = "Every convolution after it converts the layout of its input, or computes in the slower one."
KEEP_STRIDES = (
    "Normalize by operations that keep strides, such as (x - mean) * scale with mean and scale of shape (1, C, 1, 1); "
    "or end with y.contiguous(memory_format=...) as x has it."
)


@law(
    observed="the output has another dtype than the input",
    tried="layer(x.bfloat16()).dtype",
    means="The layers after it then compute in that dtype, or raise: mixed precision and .half() need x's own.",
    remedy="Compute in float32 and end with .to(x.dtype): "
    "y = self.normalized(x.float()) * weight + bias; return y.to(x.dtype).",
    explained_by=("registered",),
)
def shape_and_dtype(subject: Subject) -> None:
    """The output has the shape and the dtype of the input, a norm's its strides too, for all floating dtypes."""
    for dtype, training in product((torch.float32, torch.float64, torch.bfloat16, torch.float16), (True, False)):
        for x in few_and_many(subject, dtype):
            # A norm also takes narrower or wider activations than it is itself.
            for of_layer in dict.fromkeys((dtype, torch.float32)) if subject.is_norm else (dtype,):
                y = subject.build(dtype=of_layer, num_features=x.shape[subject.channel_axis]).train(training)(x)
                expect(y.shape == x.shape, f"the output of an input {tuple(x.shape)} is {tuple(y.shape)}")
                expect(
                    y.dtype == dtype,
                    f"a {short(of_layer)} layer returns {short(y.dtype)} for a {short(dtype)} input",
                    f"layer.to({of_layer})(x.to({dtype})).dtype",
                )
                expect(
                    y.stride() == x.stride() or not subject.is_norm,
                    f"an input {tuple(x.shape)} with strides {x.stride()} gives an output with strides {y.stride()}",
                    f"layer(torch.empty_strided({tuple(x.shape)}, {x.stride()}).normal_()).stride()",
                    KEEP_STRIDES,
                    OTHER_STRIDES,
                )


@law(
    when=lambda subject: subject.is_norm and "s/w" not in subject.facts.axes,
    where="images",
    observed="volumes (N, C, D, H, W) give something else than the same values as (N, C, D * H * W)",
    tried="x = x.unsqueeze(2); (layer(x) - layer(x.flatten(2)).view_as(x)).abs().max()",
    means="A network on volumes or videos normalizes by the wrong statistics.",
    remedy="Take statistics over range(2, x.dim()), not over axes named one by one such as (-2, -1).",
    redraws=True,
    explained_by=("memory-format",),
)
def five_dimensions(subject: Subject) -> None:
    """Volumes (N, C, D, H, W) are positions in a row."""
    layer = subject.build()
    twin = copy.deepcopy(layer)
    n, c = subject.sizes[:2]
    for sizes, memory_format in product(
        ((n, c, 2, 3, 2), (2 * n, c, 4, 8, 10)), (torch.contiguous_format, torch.channels_last_3d)
    ):
        x = subject.input(sizes=sizes)
        y = layer(x.contiguous(memory_format=memory_format))
        expect(y.is_contiguous(memory_format=memory_format), f"{memory_format} is lost")
        assert_close(y, twin(x.flatten(2)).view(x.shape))
        assert_same_buffers(layer, twin)


@law(
    observed="the output depends on how the input lies in memory",
    tried="(layer(x) - layer(x.mT.contiguous().mT)).abs().max()",
    means="The same batch gives other results after a transpose, a slice, or with channels-last images.",
    remedy="Use reshape or flatten in place of view and as_strided, and never the storage of x.",
    redraws=True,
    explained_by=("evaluation-keeps-nothing",),
)
def strides(subject: Subject) -> None:
    """Outputs do not depend on strides."""
    for training in (True, False):
        layer, x = subject.build().train(training), subject.input()
        y = copy.deepcopy(layer)(x)
        strided = torch.stack([x, x + 1], dim=-1)[..., 0]
        reversed_axes = x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
        last = [x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else []
        for other in (strided, reversed_axes, *last):
            assert_close(copy.deepcopy(layer)(other), y)
        expanded = x[..., :1].expand(x.shape)
        if expanded.dim() > 2:
            assert_close(copy.deepcopy(layer)(expanded), copy.deepcopy(layer)(expanded.contiguous()))


@law(
    observed="the output has another memory format than the input",
    tried="last = torch.channels_last; layer(x.contiguous(memory_format=last)).is_contiguous(memory_format=last)",
    means=OTHER_STRIDES,
    remedy=KEEP_STRIDES,
    binds="norms",
    redraws=True,
    explained_by=("strides", "shape-and-dtype"),
)
def memory_format(subject: Subject) -> None:
    """Contiguous inputs give contiguous outputs, channels-last ones channels-last outputs, equal to the others."""
    for training in (True, False):
        x = subject.input()
        expect(subject.build().train(training)(x).is_contiguous(), "the output of a contiguous input is not contiguous")
        if subject.layout == "NCHW":
            pairs = [(x, torch.channels_last)]
            pairs += [(x.unsqueeze(2), torch.channels_last_3d)] if subject.is_norm else []
            for settings, (images, memory_format) in product(subject.settings, pairs):
                layer = subject.build(settings).train(training)
                last = images.contiguous(memory_format=memory_format)
                y, out = copy.deepcopy(layer)(x), copy.deepcopy(layer)(last)
                expect(
                    out.is_contiguous(memory_format=memory_format),
                    f"of a {short(memory_format)} input the output is not",
                )
                assert_close(out, y.view(images.shape))
