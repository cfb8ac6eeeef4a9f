"""The pictures in the documentation: real runs, in headless Chromium."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from normzoo.monitoring.overview import time_series_url
from normzoo.page import report

EXPERIMENT = "digits_deep"
RUN = (
    *("fit", "-c", "configs/digits_mlp.yaml", f"--experiment={EXPERIMENT}", "--trainer.enable_progress_bar=false"),
    "--model.net.hidden=[100,100,100,100,100,100,100,100]",
)
NORMS = ("BatchNorm", "LayerNorm", "NoNorm")
WIDTH = 1280
VIEWS = ("verdicts", "depth", "heatmap", "layer", "evaluation", "shift", "landscape")
GRID = (
    *("compare", "-c", "configs/digits_mlp.yaml", "--model.net.activation=ReLU", "norm=BatchNorm,LayerNorm,NoNorm"),
    *("seed=0..4", "model.optimizer.lr=0.01,0.1,1.0,10.0"),
)
VIEWS_OF_GRID = ("comparison", "setting", "monitors")
QUIET = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]


def write(root: Path) -> list[Path]:
    """Trains an MLP of nine layers with three norms and a grid, and writes the pictures of page and TensorBoard."""
    from playwright.sync_api import sync_playwright

    docs = root / "docs"
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        for norm in NORMS:
            command = [sys.executable, "-m", "normzoo", *RUN, f"--runs={folder}", f"--model.net.norm={norm}"]
            subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=QUIET, chromium_sandbox=False
        )
        written = list(of_report(browser, report(folder, Path(folder) / "report.html"), docs, "page", VIEWS))
        with tensorboard(Path(folder)) as address:
            written += of_tensorboard(browser, address, docs)
        grid = Path(folder) / "grid"
        subprocess.run([sys.executable, "-m", "normzoo", *GRID, f"--out={grid}"], cwd=root, check=True)
        compared = report(grid, Path(folder) / "grid.html", target=0.95)
        written += of_report(browser, compared, docs, "compare", VIEWS_OF_GRID)
        browser.close()
    return written


def of_report(browser: Any, file: Path, docs: Path, name: str, views: Sequence[str]) -> Iterator[Path]:
    """A picture of some views of a report."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 6000})  # all of it: what floats hides nothing
    page.goto(file.as_uri())
    page.locator("main[aria-busy=false]").wait_for()
    for view in views:
        path = docs / f"{name}-{view}.png"
        box = page.locator(f"#nz-{view}").bounding_box()
        edge = {"x": box["x"] - 12, "y": box["y"], "width": box["width"] + 24, "height": box["height"] + 8}
        page.screenshot(path=path, clip=edge)
        yield path


def of_tensorboard(browser: Any, address: str, docs: Path) -> Iterator[Path]:
    """What TensorBoard opens on, by the printed address and in the tab."""
    pinned = time_series_url(f"^{EXPERIMENT}/").replace("http://localhost:6006", address)
    for name, url in (("time-series", pinned), ("tab", f"{address}/#normalization")):
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.goto(url)
        page.wait_for_timeout(8000)  # TensorBoard says nowhere that it has drawn everything
        path = docs / f"tensorboard-{name}.png"
        page.screenshot(path=path)
        yield path


@contextmanager
def tensorboard(runs: Path) -> Iterator[str]:
    """A TensorBoard of some runs; yields its address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={runs}", f"--port={port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    address = f"http://localhost:{port}"
    try:
        for _ in range(120):
            try:
                urlopen(address, timeout=5).close()
                break
            except (URLError, OSError):
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()
