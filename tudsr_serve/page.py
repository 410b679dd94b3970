"""The page at `/`: one file, which asks nobody but this server for anything."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import Response

FILE = Path(__file__).with_name("page.html")


class Page:
    """The page, and its content security policy, which names its own script and style by their hashes."""

    def __init__(self) -> None:
        self._html = FILE.read_text(encoding="utf-8")
        script, style = _hash_of("script", self._html), _hash_of("style", self._html)
        self._policy = (
            f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; worker-src blob:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def answer(self) -> Response:
        """The response that holds the page."""
        return Response(self._html, media_type="text/html", headers={"Content-Security-Policy": self._policy})


def _hash_of(element: str, html: str) -> str:
    (content,) = re.findall(f"<{element}>(.*?)</{element}>", html, re.S)
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
