"""The page in a real browser: headless Chromium on the file that `normzoo report` writes."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opened_page import Open, Opened
from page_runs import Run, as_file

from normzoo.page.bundle import html_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    reason = "playwright is not installed: pip install -e .[dev]"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the PATH to show the page in")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=QUIET, chromium_sandbox=False)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Shows runs. After the test there must have been no error and no request but for the file itself."""
    opened: list[Opened] = []

    def show(runs: list[Run], width: int = 1280, fragment: str = "", comparison: Any = None, **options: Any) -> Opened:
        file = tmp_path / "report.html"
        parts = html_page("runs", [(run["name"], as_file(run)) for run in runs], comparison=lambda: comparison)
        file.write_text("".join(parts), encoding="utf-8")
        one = Opened(browser.new_context(viewport={"width": width, "height": 900}, **options).new_page())
        one.page.set_default_timeout(10_000)
        opened.append(one)
        one.page.on("console", lambda message: one.errors.append(message.text) if message.type == "error" else None)
        one.page.on("pageerror", lambda error: one.errors.append(str(error)))
        one.page.on("request", lambda request: one.requests.append(request.url))
        one.page.goto(file.as_uri() + fragment)
        one.settle()
        return one

    yield show
    for one in opened:
        asked = [url for url in one.requests if not url.startswith(("data:", "blob:"))]
        assert one.errors == []
        assert {url.split("#")[0] for url in asked} == {(tmp_path / "report.html").as_uri()}
        one.page.context.close()
