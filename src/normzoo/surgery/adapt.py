"""Running statistics, moved towards those of data from another distribution."""

from functools import partial

from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.monitoring.layers import Layers
from normzoo.surgery._batches import Data
from normzoo.surgery._moments import (
    Buffers,
    Moments,
    has_moments,
    is_frozen,
    measure,
    restored_on_error,
    set_buffers,
    tracking_layers,
)
from normzoo.surgery.recalibrate import row
from normzoo.surgery.report import Report, counted


def adapt(net: nn.Module, data: Data, *, prior: float = 16, where: Layers = "*") -> Report:
    """Mixes the running statistics of a trained network with those of new data, without labels and without training.

    `mean = (N mean_s + n mean_t) / (N + n)`,  `var = (N var_s + n var_t) / (N + n)`

    with the trained statistics (s), those of n new samples (t, biased), and the prior N. It recovers accuracy on images
    that are noisy, blurred or from another camera. `prior=0` takes the new statistics alone.

    While a batch runs, each layer normalizes by the mix of what it has seen so far, so that for one batch this is the
    paper's method. Layers whose running statistics are no moments of their input, and frozen ones, keep theirs. In
    place; weights, modes and random numbers stay as they are. Each of several ranks passes its own share of the data.

    Args:
        net: the network; also inside DistributedDataParallel or torch.compile, or a LightningModule.
        data: batches of the new data, as `recalibrate` takes them.
        prior: N, the number of samples that the trained statistics count as, at least 0. The paper takes 8 to 512, the
            more the fewer new samples there are.
        where: which layers: a pattern of names such as "layer4.*", a class, or several.

    Returns:
        The table of `recalibrate`. `undo` sets the old statistics.

    Raises:
        InputError: prior below 0; there is no layer to adapt; data without batches, or with NaN or infinity; a network
            on the meta device. The network is as before.

    Reference: Steffen Schneider, Evgenia Rusak, Luisa Eck, Oliver Bringmann, Wieland Brendel, Matthias Bethge.
    Improving robustness against common corruptions by covariate shift adaptation. 2020. arXiv 2006.16971.

    >>> import torch
    >>> net = nn.Sequential(nn.BatchNorm1d(2))
    >>> report = adapt(net, [torch.tensor([[0.0, 1.0], [2.0, 3.0]])], prior=2)
    >>> net[0].running_mean, net[0].running_var
    (tensor([0.5000, 1.0000]), tensor([1., 1.]))
    """
    if not prior >= 0:
        raise InputError(
            f"adapt(prior={prior}): the trained statistics count as this many samples, at least 0; try 16."
        )
    layers = tracking_layers(net, where)
    chosen = {name: layer for name, layer in layers.items() if has_moments(layer) and not is_frozen(layer)}
    if not chosen:
        raise InputError(
            f"adapt(where={where!r}): all layers are frozen, or their running statistics are not the mean and "
            f"variance of their input; unfreeze them, or use another norm."
        )
    with restored_on_error(chosen) as before:
        trained = {layer: before[name] for name, layer in chosen.items()}

        def use(layer: nn.Module, batch: Moments, so_far: Moments) -> None:
            set_buffers(layer, mixed(trained[layer], so_far, prior))

        found, count = measure(net, data, chosen, use)
        for name, layer in chosen.items():
            set_buffers(layer, before[name] | (mixed(before[name], found[name], prior) if name in found else {}))
    done = {name: f"{found[name].samples} samples" for name in found}
    rows = [
        row(name, layer, done.get(name, "kept"), before[name] if name in found else {})
        for name, layer in layers.items()
    ]
    title = f"adapted {counted(done, 'layer')} to {counted(count, 'batch')}"
    return Report(title=title, rows=rows, steps=[partial(set_buffers, layers[name], before[name]) for name in done])


def mixed(trained: Buffers, new: Moments, prior: float) -> dict[str, Tensor]:
    """The running statistics of a layer after new samples, with those before counting as `prior` samples."""
    moments = {"running_mean": new.mean, "running_var": new.var()}
    total = prior + new.samples
    return {
        name: (prior * trained[name].cpu().double() + new.samples * value) / total
        for name, value in moments.items()
        if name in trained
    }
