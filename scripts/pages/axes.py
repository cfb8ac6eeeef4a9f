"""Pictures of what statistics run over: a block of samples x channels x positions, and one set of its cells in colour.

Colours are such that they can be read on white and on black.
"""

from collections.abc import Callable, Collection, Sequence
from itertools import product

from normzoo.norms import Facts

# Cells along each axis: two groups of channels, and a window of three of them, can be told apart.
SAMPLES, CHANNELS, POSITIONS = 4, 6, 5
GROUP, WINDOW = 3, 3
SIDE = 22.0  # of a cell, in pixels
SLANT = (11.0, -8.0)  # how far a cell further back is shifted
MARGIN = (32.0, 10.0)

GREY, LINE, TEXT = "#8b949e", "#8b949e", "#768390"
# The three faces of a cell that is lit from above.
FACES = {"top": "#f0a35e", "front": "#e07b39", "side": "#b85c22"}
OPACITY = {"top": "0.10", "front": "0.18", "side": "0.28"}

Cell = tuple[int, int, int]


def file_name(facts: Facts) -> str:
    """The picture of a layer: one for each set of axes of activations, and of weights."""
    axes = "-".join(axis.replace("/", "") for axis in facts.axes) or "none"
    return f"{'weight-' if facts.acts_on == 'weight' else ''}{axes}.svg"


def chosen(facts: Facts) -> Callable[[Cell], bool]:
    """Which cells (sample, channel, position) share one set of statistics: that of the cell nearest to the reader.

    Samples count from the front, channels from the left, positions from the top. A weight (C, I, *) has its output
    channels in the place of the samples; a layer that acts on it takes "s" for all that is behind one of them.
    """
    axes: Collection[str] = facts.axes
    if facts.acts_on == "weight":
        axes = {*({"N"} & set(axes)), *({"C", "s"} if "s" in axes else ())}
    first_of_window = (CHANNELS - WINDOW) // 2

    def inside(cell: Cell) -> bool:
        sample, channel, position = cell
        of_channels = channel == CHANNELS - 1
        if "C" in axes:
            of_channels = True
        elif "C/G" in axes:
            of_channels = channel >= CHANNELS - GROUP
        elif "C/w" in axes:
            of_channels = first_of_window <= channel < first_of_window + WINDOW
        of_positions = "s" in axes or position < (WINDOW if "s/w" in axes else 1)
        return bool(axes) and ("N" in axes or sample == 0) and of_channels and of_positions

    return inside


def picture(facts: Facts) -> str:
    """The block as SVG."""
    inside = chosen(facts)
    (left, top), (across, up) = MARGIN, SLANT
    depth = SAMPLES * across, -SAMPLES * up
    width = left + CHANNELS * SIDE + depth[0] + MARGIN[1] + 4
    height = top + depth[1] + POSITIONS * SIDE + 24
    x0, y0 = left, top + depth[1]  # the upper left corner of the front

    def place(channel: float, position: float, sample: float) -> str:
        return f"{x0 + channel * SIDE + sample * across:g},{y0 + position * SIDE + sample * up:g}"

    def face(corners: Sequence[tuple[float, float, float]], kind: str, cell: Cell) -> str:
        points = " ".join(place(*corner) for corner in corners)
        fill = f'fill="{FACES[kind]}"' if inside(cell) else f'fill="{GREY}" fill-opacity="{OPACITY[kind]}"'
        return f'<polygon points="{points}" {fill}/>'

    faces = [
        face([(c, 0, n), (c + 1, 0, n), (c + 1, 0, n + 1), (c, 0, n + 1)], "top", (n, c, 0))
        for n, c in product(range(SAMPLES), range(CHANNELS))
    ]
    end = CHANNELS
    faces += [
        face([(end, s, n), (end, s, n + 1), (end, s + 1, n + 1), (end, s + 1, n)], "side", (n, end - 1, s))
        for n, s in product(range(SAMPLES), range(POSITIONS))
    ]
    faces += [
        face([(c, s, 0), (c + 1, s, 0), (c + 1, s + 1, 0), (c, s + 1, 0)], "front", (0, c, s))
        for c, s in product(range(CHANNELS), range(POSITIONS))
    ]

    behind, beside, below = ("C out", "C in", "s") if facts.acts_on == "weight" else ("N", "C", "s")
    middle = x0 + CHANNELS * SIDE / 2, y0 + POSITIONS * SIDE / 2
    labels = [
        (middle[0], y0 + POSITIONS * SIDE + 16, "middle", beside),
        (x0 - 6, middle[1] + 4, "end", below),
        (x0 + depth[0] / 2 - 6, y0 - depth[1] / 2 - 1, "end", behind),
    ]
    words = "statistics over " + ", ".join(facts.axes) if facts.axes else "no statistics"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" role="img">',
            f"<title>{words}</title>",
            f'<g stroke="{LINE}" stroke-width="0.8" stroke-linejoin="round">',
            *faces,
            "</g>",
            f'<g fill="{TEXT}" font-family="sans-serif" font-size="13">',
            *(f'<text x="{x:g}" y="{y:g}" text-anchor="{at}">{word}</text>' for x, y, at, word in labels),
            "</g>",
            "</svg>",
            "",
        ]
    )
