"""The tab Normalization of TensorBoard: serves the page, and the runs below the log directory while they train."""

import gzip
import json
import mimetypes
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard.plugins.base_plugin import FrontendMetadata, TBContext, TBPlugin
from werkzeug import Request, Response

from normzoo.page.bundle import DIGITS, HOSTS, STATIC
from normzoo.page.event_log import PLUGIN
from normzoo.page.json_text import json_text
from normzoo.page.live_runs import LiveRuns


class NormalizationPlugin(TBPlugin):  # type: ignore[misc] # tensorboard ships no types
    """The Normalization tab, which TensorBoard finds by the entry point `tensorboard_plugins`.

    It reads the event files itself: TensorBoard keeps only a sample of the tables.

    Args:
        context: what TensorBoard gives to each plugin.
    """

    plugin_name = PLUGIN

    def __init__(self, context: TBContext) -> None:
        folder = Path(context.logdir or "").expanduser()
        self.runs = LiveRuns(folder) if context.logdir and "://" not in context.logdir else None

    def is_active(self) -> bool:
        """Whether a run has tables. TensorBoard asks only as long as it has not read one itself."""
        return self.runs is not None and self.runs.any()

    def frontend_metadata(self) -> FrontendMetadata:
        """The name of the tab, and its script."""
        return FrontendMetadata(es_module_path="/index.js", tab_name="Normalization")

    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        """The routes below data/plugin/normalization."""
        routes = {
            "/index.js": serve_index,
            "/static/*": serve_static,
            "/runs": self.serve_runs,
            "/run": self.serve_run,
            "/comparison": self.serve_comparison,
        }
        return {route: Request.application(serve) for route, serve in routes.items()}

    def serve_runs(self, request: Request) -> Response:
        """Name and version of all runs with tables."""
        if self.runs is None:
            return failure(
                "The Normalization tab reads the event files below one local folder: start TensorBoard with "
                "--logdir=FOLDER."
            )
        runs = [{"name": name, "version": version} for name, version in self.runs.versions().items()]
        content = json.dumps(runs)
        return answer(request, lambda: content, "application/json", f"{zlib.crc32(content.encode()):08x}")

    def serve_run(self, request: Request) -> Response:
        """The run in the argument `name`, if it is one of `serve_runs`."""
        name = request.args.get("name", "")
        runs = self.runs
        version = runs and runs.version(name)
        if not runs or not version:
            return failure(f"There is no run {name!r} with tables of monitors.")
        try:
            return answer(request, lambda: runs.text(name), "application/json", version)
        except (OSError, KeyError):
            return failure(f"The run {name!r} was deleted.")

    def serve_comparison(self, request: Request) -> Response:
        """The comparison of the runs, null if there is none."""
        content = json_text(self.runs and self.runs.comparison(), DIGITS)
        return answer(request, lambda: content, "application/json", f"{zlib.crc32(content.encode()):08x}")


def serve_index(request: Request) -> Response:
    """The script that TensorBoard starts."""
    return file_answer(request, HOSTS / "tensorboard.js")


def serve_static(request: Request) -> Response:
    """A file of the page, by its name."""
    name = request.path.rpartition("/")[2]
    if name not in {file.name for file in STATIC.iterdir() if file.is_file()}:
        return failure(f"There is no file {name!r}.")
    return file_answer(request, STATIC / name)


def file_answer(request: Request, file: Path) -> Response:
    """A file of this package."""
    kind = {".js": "text/javascript"}.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "text/plain"
    text = file.read_text(encoding="utf-8")
    return answer(request, lambda: text, kind, f"{zlib.crc32(text.encode()):08x}")


def answer(request: Request, text: Callable[[], str], kind: str, version: str) -> Response:
    """A text, compressed; nothing if the browser has this version already."""
    response = Response(content_type=f"{kind}; charset=utf-8", headers={"Cache-Control": "no-cache"})
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.set_etag(version)
    if request.if_none_match.contains(version):
        response.status_code = 304
    elif request.accept_encodings.best_match(["gzip"]):
        response.data = gzip.compress(text().encode(), compresslevel=6)
        response.headers["Content-Encoding"] = "gzip"
    else:
        response.data = text().encode()
    response.headers["Vary"] = "Accept-Encoding"
    return response


def failure(message: str) -> Response:
    """A message that the page shows."""
    return Response(json.dumps({"error": message}), status=404, content_type="application/json")
