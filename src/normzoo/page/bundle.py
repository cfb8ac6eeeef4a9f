"""The page as one HTML file: scripts, styles and runs inside, no request to anywhere."""

import base64
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from normzoo.page.json_text import json_text

DIGITS = 9
"""Of a comparison: its differences are small."""
STATIC = Path(__file__).parent / "static"
HOSTS = Path(__file__).parent / "hosts"

# What modules say to each other, of no use in one script.
IMPORT = re.compile(r'^import .* from "\./.*";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(async )?function|const|class)", re.MULTILINE)

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; style-src \
'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<noscript>This page draws its charts with JavaScript, which is switched off in this browser.</noscript>
<div id="page"></div>
"""


def html_page(
    title: str,
    runs: Iterable[tuple[str, bytes]],
    static: Path | None = None,
    comparison: Callable[[], Mapping[str, Any] | None] = lambda: None,
) -> Iterator[str]:
    """The parts of the file.

    Args:
        title: of the document.
        runs: name and packed data of each.
        comparison: returns that of all runs, None for none; it is called when all runs have been read.
        static: the folder of the modules; None for that of this package.
    """
    static = static or STATIC
    yield HEAD.format(title=html.escape(title), style=(static / "page.css").read_text(encoding="utf-8"))
    for name, content in runs:
        text = base64.b64encode(content).decode()
        yield f'<script type="text/plain" data-run="{html.escape(name)}">{text}</script>\n'
    if compared := comparison():
        yield f'<script type="text/plain" data-comparison>{escaped(json_text(compared, DIGITS))}</script>\n'
    yield f'<script type="module">\n{inline(joined_modules(static))}</script>\n</body>\n</html>\n'


def joined_modules(static: Path) -> str:
    """All modules and the host of a file as one script: their imports and exports are dropped."""
    files = [static / name for name in json.loads((static / "modules.json").read_text(encoding="utf-8"))]
    texts = (file.read_text(encoding="utf-8") for file in [*files, HOSTS / "report.js"])
    return "\n".join(EXPORT.sub("", IMPORT.sub("", text)) for text in texts)


def escaped(text: str) -> str:
    """JSON within HTML: a string in it must not seem to end the script."""
    return text.replace("<", "\\u003c")


def inline(script: str) -> str:
    """A script within HTML, which must not seem to end in the middle."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
