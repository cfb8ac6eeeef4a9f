"""Pictures of a quantity over layers and steps."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Points of the colour map viridis (Stéfan van der Walt, Nathaniel Smith 2015): even steps of lightness.
VIRIDIS = ("440154", "482475", "414487", "355f8d", "2a788e", "21918c", "22a884", "44bf70", "7ad151", "bddf26", "fde725")
NOT_FINITE = (255, 0, 64)
NOT_SEEN = (221, 221, 221)
TEXT = (40, 40, 40)
# TensorBoard shows a card of about 350 pixels: names must be readable when this is made smaller by a third.
PLOT_WIDTH, FONT_SIZE = 300, 13


@cache
def colours() -> Tensor:
    """(256, 3), from low to high, uint8."""
    points = torch.tensor([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in VIRIDIS], dtype=torch.float64)
    place = torch.linspace(0, len(points) - 1, 256, dtype=torch.float64)
    below = place.floor().long().clamp_max(len(points) - 2)
    share = (place - below).unsqueeze(1)
    return (points[below] * (1 - share) + points[below + 1] * share).round().to(torch.uint8)


def painted(values: Tensor, seen: Tensor, low: float, high: float) -> Tensor:
    """Each value's colour: (..., 3), uint8."""
    share = ((values - low) / (high - low if high > low else 1)).clamp(0, 1).nan_to_num(0)
    picture = colours()[(share * 255).round().long()]
    picture[~values.isfinite()] = torch.tensor(NOT_FINITE, dtype=torch.uint8)
    picture[~seen] = torch.tensor(NOT_SEEN, dtype=torch.uint8)
    return picture


def heatmap(title: str, rows: Sequence[str], steps: Sequence[int], values: Tensor, seen: Tensor) -> Image.Image:
    """A table as a picture: a row per layer, a column per step, with names, a scale and its bounds.

    Where values span three decades or more, and are all above 0, colours follow their logarithm. What is not finite is
    red, what was not measured is grey.

    Args:
        title: what is shown, with its unit.
        rows: names of the layers, first to last.
        steps: (S,), the steps of the columns.
        values: (L, S).
        seen: (L, S), whether there is a value.
    """
    font = ImageFont.load_default(FONT_SIZE)
    known = values[seen & values.isfinite()]
    low, high = (known.min().item(), known.max().item()) if known.numel() else (0.0, 1.0)
    logarithmic = low > 0 and high / low >= 1000
    shown = values.log() if logarithmic else values
    bounds = (math.log(low), math.log(high)) if logarithmic else (low, high)

    height = max(min(24, 900 // max(len(rows), 1)), 3)  # of a row
    named = [i for i in range(len(rows)) if height >= 12 or i % math.ceil(14 / height) == 0]
    left = 12 + max((int(font.getlength(rows[i])) for i in named), default=0)
    top, bottom = 30, 26
    right = left + PLOT_WIDTH
    lines = wrapped(title + (", logarithmic" if logarithmic else ""), right + 60, font)
    top += (FONT_SIZE + 3) * (len(lines) - 1)
    picture = Image.new("RGB", (right + 92, top + max(height * len(rows), 60) + bottom), "white")
    draw = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        draw.text((8, 6 + i * (FONT_SIZE + 3)), line, TEXT, font)

    def paste(colour: Tensor, box: tuple[int, int, int, int]) -> None:
        small = Image.frombytes("RGB", (colour.shape[1], colour.shape[0]), bytes(colour.flatten().tolist()))
        picture.paste(small.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.NEAREST), box)

    if values.numel():
        paste(painted(shown, seen, *bounds), (left, top, right, top + height * len(rows)))
    for i in named:
        draw.text((left - 6, top + i * height + height / 2), rows[i], TEXT, font, anchor="rm")
    foot = top + height * len(rows) + 4
    for place, anchor in ((0, "la"), (len(steps) // 2, "ma"), (len(steps) - 1, "ra")):
        if len(steps) > 4 or (steps and anchor == "la") or (len(steps) > 1 and anchor == "ra"):
            x = left + (right - left) * (0 if anchor == "la" else 1 if anchor == "ra" else (place + 0.5) / len(steps))
            draw.text((x, foot), f"step {steps[place]}" if anchor == "la" else str(steps[place]), TEXT, font, anchor)
    scale = torch.linspace(1, 0, 64).unsqueeze(1)
    end = top + max(height * len(rows), 60)
    paste(painted(scale, torch.ones_like(scale, dtype=torch.bool), 0, 1), (right + 16, top, right + 32, min(end, foot)))
    draw.text((right + 38, top), f"{high:.3g}", TEXT, font)
    draw.text((right + 38, min(end, foot) - FONT_SIZE - 4), f"{low:.3g}", TEXT, font)
    return picture


def wrapped(text: str, width: int, font: Any) -> list[str]:
    """Lines of at most a width in pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
