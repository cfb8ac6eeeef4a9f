"""The section on arguments in docs/zoo.md: those of every layer, and those of layers of the same name elsewhere."""

from collections.abc import Mapping

from counterparts import COUNTERPARTS, FACTORY, Counterpart

SHORT = {"torch.nn.utils.parametrizations.": "", "torch.nn.": "nn.", "torchvision.ops.": "torchvision "}
SHORT |= {"timm.layers.grn.": "timm ", "timm.layers.": "timm "}


def section(common: Mapping[str, str]) -> str:
    """The whole section.

    Args:
        common: the arguments that every layer takes, and what they mean.
    """
    rows = ["| theirs | ours | same name, position and default | otherwise |", "|---|---|---|---|"]
    named: dict[tuple[str, ...], list[str]] = {}
    for pair in COUNTERPARTS:
        named.setdefault(cells(pair), []).append(f"`{short(pair.theirs)}`")
    rows += [f"| {' | '.join((', '.join(names), *rest))} |" for rest, names in named.items()]
    return "\n\n".join(
        [
            "## Arguments",
            "Every layer takes, beside its own arguments, which its card lists:",
            "\n".join(f"- `{name}`: {meaning}" for name, meaning in common.items()),
            "`reset_parameters()` sets parameters and buffers to their initial values, `reset_running_stats()` the "
            "running statistics alone. Call the first after `torch.nn.utils.skip_init(layer, C)`, or after `to_empty` "
            "on a layer that was built on the meta device.",
            "Layers of other libraries with the same name, and which of their arguments ours accept, in the order of "
            "ours, after the number of channels.",
            "\n".join(rows),
            "`BatchNorm` and `TorchBatchNorm` derive from `torch.nn.BatchNorm2d`, for inputs of any number of axes: "
            "`torch.optim.swa_utils.update_bn`, Lightning's `StochasticWeightAveraging` and `BaseFinetuning`, timm's "
            "`freeze_batch_norm_2d` and fvcore's precise BN find them, and `convert_sync_batchnorm` replaces them by "
            "`SyncBatchNorm`, which computes the same. None of these tools knows `channel_dim` and `freeze()`. A layer "
            "with another formula does not derive from it, because that conversion would silently replace it. For such "
            "a layer use `sync=True` or `SyncNorms`, `freeze()`, and after averaging weights "
            "`normzoo.surgery.recalibrate(net, batches)`, which is `update_bn` for every layer, and exact.",
        ]
    )


def cells(pair: Counterpart) -> tuple[str, ...]:
    """A row of the table, without its first cell."""
    theirs = pair.signature()
    otherwise = {
        **{name: why for name, why in pair.moved.items() if name not in pair.others},
        **{name: f"default {why}" for name, why in pair.others.items()},
        **{name: f"not taken: {why}" for name, why in pair.absent.items()},
    }
    same = [name for name in theirs if name not in otherwise and name not in ("num_features", *FACTORY)]
    same += [name for name in FACTORY if name in theirs]
    return (
        f"`{pair.how}`" if pair.how else f"[{pair.ours.__name__}](#{pair.ours.__name__.lower()})",
        ", ".join(f"`{name}`" for name in same),
        "; ".join(f"`{name}`: {why}" for name, why in otherwise.items()),
    )


def short(path: str) -> str:
    """The name of another library's layer, as its users write it."""
    for long, known in SHORT.items():
        path = path.replace(long, known)
    return path
