"""The command `normzoo report`: writes what monitors measured in some runs as one page."""

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
        description="Write what the monitors measured as one page: verdicts, depth profiles, heatmaps, every layer. "
        "The page is one file, which opens in any browser without a server.",
        epilog="While a run trains, 'tensorboard --logdir=lightning_logs' shows the same page, in the tab "
        "Normalization.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="the folder of a run, an experiment, or any folder above; a run also by its number, EXPERIMENT/7",
    )
    parser.add_argument(
        "-o",
        "--output",
        default="report.html",
        metavar="FILE",
        help="the file to write: .html for a page, .json for its data; one that exists is replaced "
        "(default: report.html)",
    )
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    given = parser.parse_args(arguments)

    from normzoo.page.report_file import write_report  # numpy is imported here and not for --help

    written = write_report(given.runs, Path(given.output))
    for note in written.notes:
        print(f"normzoo: {printable(note)}", file=sys.stderr)
    count = f"{len(written.runs)} run{'' if len(written.runs) == 1 else 's'}"
    print(f"report       {written.path} ({count}, {size(written.path.stat().st_size)})")
    if given.open:
        webbrowser.open(written.path.resolve().as_uri())


def size(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(count / 1e3, 0.1):.1f} kB"
