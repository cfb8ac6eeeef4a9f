"""A page in a browser, as tests ask it."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Opened:
    """A page, with what went wrong in it and what it asked for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def settle(self) -> None:
        """Waits until all views are drawn."""
        self.page.locator("main[aria-busy=false]").wait_for()

    def chart(self, title: str, view: str = "depth") -> Any:
        """The chart with this title."""
        return self.page.locator(f"#nz-{view} svg.nz-figure").filter(has_text=title).first

    def tip(self) -> str:
        """The text of the tooltip."""
        text: str = self.page.locator(".nz-tip").inner_text()
        return text

    def saved(self, view: str, kind: str) -> bytes:
        """What a button of a view saves."""
        self.page.wait_for_timeout(110)  # Chromium drops what a page saves beyond ten files a second
        with self.page.expect_download() as download:
            self.page.locator(f"#nz-{view} .nz-save button", has_text=kind).click()
        return Path(download.value.path()).read_bytes()

    def csv(self, view: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.saved(view, "CSV").decode())))


Open = Callable[..., Opened]
