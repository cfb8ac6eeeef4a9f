"""`scripts/docs`: writes the pages anew."""

import argparse
from pathlib import Path

import torch

from pages import benchmark, claims, conformance, faults, monitors, pictures, training, zoo

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Writes what is named, or all of it."""
    parser = argparse.ArgumentParser(prog="scripts/docs", description=__doc__)
    parser.add_argument(
        "pages",
        nargs="*",
        metavar="PAGE",
        help="zoo: docs/zoo.md, docs/axes/ and the README's table; pictures: docs/*.png; benchmark, claims, "
        "conformance, faults, monitors, training: that page in docs/",
    )
    writers = {
        "zoo": zoo.write,
        "conformance": conformance.write,
        "monitors": monitors.write,
        "training": training.write,
        "benchmark": benchmark.write,
        "claims": claims.write,
        "faults": faults.write,
        "pictures": pictures.write,
    }
    asked = parser.parse_args().pages or list(writers)
    for name in asked:
        if name not in writers:
            parser.error(f"no page is called {name}; there are {', '.join(writers)}")
    torch.set_num_threads(1)  # the tensors are tiny
    for name in asked:
        for path in writers[name](ROOT):
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
