"""The command `normzoo report`: writes what monitors measured in some runs, and how they compare, as one page."""

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from normzoo.cli.commands import ArgumentParser
from normzoo.errors import printable


def main(arguments: Sequence[str]) -> None:
    """Runs `normzoo report`."""
    parser = ArgumentParser(
        prog="normzoo report",
        description="Write what the monitors measured as one page: verdicts, depth profiles, heatmaps, every layer; of "
        "several runs, how they compare. The page is one file, which opens in any browser without a server.",
        epilog="While a run trains, 'tensorboard --logdir=lightning_logs' shows the same page, in the tab "
        "Normalization.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="the folder of a run, an experiment, a grid, or any folder above; a run also by its number, EXPERIMENT/7",
    )
    parser.add_argument(
        "-o",
        "--output",
        default="report.html",
        metavar="FILE",
        help="the file to write: .html for a page, .json for its data, .csv for a table with a row for each run; one "
        "that exists is replaced (default: report.html)",
    )
    parser.add_argument("--csv", action="store_true", help="also write FILE.csv")
    parser.add_argument("--json", action="store_true", help="also write FILE.json")
    parser.add_argument(
        "--baseline",
        metavar="NORM",
        help="the norm that the others are compared with (default: BatchNorm, else NoNorm, else the first)",
    )
    parser.add_argument(
        "--target",
        type=float,
        metavar="VALUE",
        help="count the steps until the validation metric is this good, such as 0.95",
    )
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    given = parser.parse_args(arguments)

    from normzoo.page.comparison_table import show_comparison
    from normzoo.page.report_file import write_report  # numpy is imported here and not for --help

    beside = [suffix for suffix, wanted in ((".csv", given.csv), (".json", given.json)) if wanted]
    written = write_report(given.runs, Path(given.output), beside=beside, baseline=given.baseline, target=given.target)
    for note in written.notes:
        print(f"normzoo: {printable(note)}", file=sys.stderr)
    if written.comparison:
        show_comparison(written.comparison)
        print()
    count = f"{len(written.runs)} run{'' if len(written.runs) == 1 else 's'}"
    for path in written.paths:
        print(f"report       {path} ({count}, {size(path.stat().st_size)})")
    if given.open:
        webbrowser.open(written.paths[0].resolve().as_uri())


def size(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(count / 1e3, 0.1):.1f} kB"
