"""`scripts/bench train`: a training step of this project against the same work done otherwise, in ratios."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from machine import HEADER, describe, row  # beside this file

from normzoo.norms import BatchNorm, TorchBatchNorm

HERE = Path(__file__).parent

# What is compared: (ours, other, what it shows, mark).
PAIRS = {
    "mlp": [
        ("mlp_ours", "mlp_bare", "MLP, batch 64: fit / bare PyTorch", "at most 1.6"),
        ("mlp_bare_own_norm", "mlp_bare", "  of which the layer: bare ours / bare torch", ""),
    ],
    "lightning": [
        ("lightning_ours", "lightning_torchvision", "MLP, batch 128: fit / Lightning + torchvision", "at most 0.20"),
    ],
    "resnet": [
        ("resnet_ours", "resnet_bare", "ResNet-8, batch 128: fit / bare PyTorch", "at most 0.70"),
        ("resnet_ours_torch_norm", "resnet_bare", "  the same with TorchBatchNorm", ""),
    ],
}

SHAPES = {"contiguous": ((128, 64, 32, 32), (64, 256, 14, 14)), "channels-last": ((128, 64, 32, 32), (64, 256, 14, 14))}


def main() -> None:
    """Measures what --only names, and prints one row for each comparison."""
    parser = argparse.ArgumentParser(prog="scripts/bench train", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times that each pair is measured, in turn")
    parser.add_argument("--only", default="mlp,lightning,resnet,batchnorm", help="which, separated by commas")
    arguments = parser.parse_args()
    print(describe(), HEADER, sep="\n\n", flush=True)
    for name in arguments.only.split(","):
        if name == "batchnorm":
            batch_norm(max(5 * arguments.rounds, 10))
        else:
            processes(PAIRS[name], arguments.rounds)


def processes(pairs: list[tuple[str, str, str, str]], rounds: int) -> None:
    """Times whole training processes in turn: ours, other, ours, other ..."""
    arms = list(dict.fromkeys(arm for ours, other, *_ in pairs for arm in (ours, other)))
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm in arms:
            done = subprocess.run(
                [sys.executable, "arms.py", arm], cwd=HERE, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{arm} failed:\n{done.stderr[-2000:]}")
            times[arm].append(float(done.stdout.split()[-1]))
    for ours, other, label, mark in pairs:
        print(row(label, times[ours], times[other], mark), flush=True)


def batch_norm(rounds: int) -> None:
    """Times the layer alone, forward and backward, in this process: the default allocator."""
    for layout, shapes in SHAPES.items():
        for shape in shapes:
            x = torch.randn(shape)
            if layout == "channels-last":
                x = x.to(memory_format=torch.channels_last)
            x.requires_grad_()
            dy = torch.randn_like(x)
            layers = BatchNorm(shape[1]), TorchBatchNorm(shape[1])
            times: tuple[list[float], list[float]] = [], []
            for turn in range(rounds + 3):
                for layer, found in zip(layers, times, strict=True):
                    milliseconds = forward_and_backward(layer, x, dy)
                    if turn >= 3:
                        found.append(milliseconds)
            mark = "at most 1.1" if layout == "contiguous" else ""
            print(row(f"BatchNorm / TorchBatchNorm {shape} {layout}"[:60], *times, mark), flush=True)


def forward_and_backward(layer: nn.Module, x: Tensor, dy: Tensor) -> float:
    """Milliseconds of one forward and backward pass."""
    start = time.perf_counter()
    torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
