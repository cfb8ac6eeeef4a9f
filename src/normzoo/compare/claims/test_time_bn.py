"""Statistics of the test batch itself recover accuracy on corrupted images."""

from collections.abc import Sequence
from statistics import mean

import torch
from torch import Tensor, nn

from normzoo.compare.claims._claim import Claim, Rule, Values, grid
from normzoo.compare.claims._corruptions import BLUR, NOISE, corrupt
from normzoo.compare.claims._run import Run
from normzoo.data import FashionMNIST
from normzoo.runs import load_task
from normzoo.surgery import adapt, undo

IMAGES, BATCH = 1000, 250
GAIN = "gain in points, mean of ten corruptions"
CLEAN = "gain on clean images"
KINDS: dict[str, Sequence[str]] = {
    "noise": [*NOISE],
    "blur": [*BLUR],
    "contrast and brightness": ["contrast", "brightness"],
    "inversion": ["inversion"],
}


def measure(seed: int, runs: Sequence[Run]) -> Values:
    """The accuracy on corrupted images with the statistics of training, and what those of the test batch add."""
    [run] = runs
    net = load_task(run.checkpoint).eval()
    data = FashionMNIST()
    data.prepare_data()
    _, test = data.read()
    clean, labels = test.images[:IMAGES], test.labels[:IMAGES]
    by_class = labels.argsort(stable=True)
    before = accuracy(net, data.normalize(clean), labels)
    sorted_batches = accuracy_by_batch(net, data.normalize(clean[by_class]), labels[by_class])
    corrupted = corrupt(clean, seed)
    trained = {name: accuracy(net, data.normalize(images), labels) for name, images in corrupted.items()}
    gain = {name: accuracy_by_batch(net, data.normalize(x), labels) - trained[name] for name, x in corrupted.items()}
    return {
        "accuracy in %, mean of ten corruptions": mean(trained.values()),
        GAIN: mean(gain.values()),
        **{f"gain, {kind}": mean(gain[name] for name in names) for kind, names in KINDS.items()},
        CLEAN: accuracy_by_batch(net, data.normalize(clean), labels) - before,
        "gain on clean images, batches sorted by class": sorted_batches - before,
    }


@torch.inference_mode()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that are classified correctly, in percent."""
    return 100 * (net(images).argmax(1) == labels).double().mean().item()


def accuracy_by_batch(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The accuracy with each batch normalized by its own statistics."""
    found = []
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        report = adapt(net, [x], prior=0)
        found.append(accuracy(net, x, y))
        undo(report)
    return mean(found)


CLAIM = Claim(
    name="test-time-bn",
    paper="Improving robustness against common corruptions by covariate shift adaptation (2020, arXiv 2006.16971)",
    place="section 5; also Evaluating Prediction-Time Batch Normalization (2020, arXiv 2006.10963), section 3",
    statement="Statistics of the test batch instead of those of training make networks with batch normalization more "
    "robust to corruptions.",
    figure="ResNet-50 on ImageNet-C: mean corruption error 76.7 % with the statistics of training, 62.2 % adapted",
    setting=f"Three convolutions, 3 epochs of 20,000 images of Fashion-MNIST; {IMAGES:,} test images with each of ten "
    f"corruptions, in batches of {BATCH}.",
    grids={"test-time-bn": grid("test_time_bn.yaml", "norm=BatchNorm", "seed=0..2")},
    measure=measure,
    rules=(Rule(GAIN, least=15), Rule(CLEAN, least=-1.5, most=1.5)),
    remarks=(
        "New statistics partly undo contrast and brightness by construction.",
        "Inversion does not get better.",
        "Batches must mix the classes: see the row of sorted ones.",
    ),
)
