"""What a measurement says of itself: the machine, the versions, and medians instead of single numbers."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import median


def describe() -> str:
    """The machine and the versions of what is measured, in two lines."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    kilobytes = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if "MemTotal" in line), 0)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "lightning", "normzoo"))
    memory = f"{kilobytes / 2**20:.0f} GB"
    return (
        f"machine   {cpu}, {os.cpu_count()} cores, {memory}, {platform.system()} {platform.machine()}\n"
        f"versions  Python {platform.python_version()}, {packages}"
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def row(name: str, ours: list[float], other: list[float], mark: str) -> str:
    """Medians in milliseconds of two things timed in turn, and the median of their ratios pair by pair."""
    ratios = sorted(a / b for a, b in zip(ours, other, strict=True))
    return (
        f"{name:44} {median(ours):9.3f} {median(other):9.3f}   {median(ratios):5.2f}  "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})   {mark}"
    )


HEADER = f"{'milliseconds per step, medians':44} {'ours':>9} {'other':>9}   ratio  (range)          mark"
