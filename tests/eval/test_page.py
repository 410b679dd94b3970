"""The page in a real browser: it sorts, zooms all pictures at once, and asks for nothing."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cli import app
from tudsr_eval.matching import Case
from tudsr_eval.page import write_page
from tudsr_eval.run import Scored
from tudsr_eval.scores import ALWAYS

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)


class Server(ThreadingHTTPServer):
    """Counts who asks for anything, and lets pages of any origin ask."""

    asked = 0


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked += 1
        self.send_response(204)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


PROBE = """
<script>
addEventListener("load", () => {
  const found = {};
  const images = [...document.querySelectorAll(".view img")];
  found.sizes = images.map((image) => [image.naturalWidth, image.naturalHeight]);
  const names = () => [...document.querySelectorAll(".case")].map((card) => card.dataset.name);
  const choose = (id, text) => {
    const select = document.getElementById(id);
    const option = [...select.options].find((o) => o.textContent.startsWith(text));
    select.value = option.value;
    select.dispatchEvent(new Event("change"));
  };
  choose("metric", "PSNR"); choose("method", "bicubic"); choose("order", "worst");
  found.worst = names();
  choose("order", "best");
  found.best = names();
  const transforms = () => [...new Set(images.map((image) => image.style.transform))];
  const box = document.querySelector(".view");
  const place = box.getBoundingClientRect();
  const wheel = { deltaY: -1, clientX: place.left + 100, clientY: place.top + 50 };
  box.dispatchEvent(new WheelEvent("wheel", wheel));
  found.zoomed = transforms();
  box.dispatchEvent(new PointerEvent("pointermove", { buttons: 1, movementX: -5, movementY: -7 }));
  found.moved = transforms();
  box.dispatchEvent(new MouseEvent("dblclick"));
  found.reset = transforms();
  found.requests = performance.getEntriesByType("resource")
    .map((one) => one.name).filter((name) => !name.startsWith("data:"));
  const request = new XMLHttpRequest();
  request.open("GET", "http://127.0.0.1:PORT/", false);
  try { request.send(); found.fetch = request.status; } catch { found.fetch = "refused"; }
  document.title = JSON.stringify(found);
});
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_the_page_sorts_zooms_and_asks_for_nothing(pictures: Path, server: Server) -> None:
    words = [pictures / "bicubic", "--reference", pictures / "HR", "--input", pictures / "LR"]
    app(["eval", *map(str, words), "-o", str(pictures / "out")], standalone_mode=False)
    page = (pictures / "out" / "index.html").read_text(encoding="utf-8")
    found = opened(page, pictures, server)
    records = [json.loads(line) for line in (pictures / "out" / "scores.jsonl").read_text().splitlines()]
    by_psnr = [r["name"] for r in sorted(records, key=lambda r: r["scores"]["psnr_y"])]
    assert found["worst"] == by_psnr
    assert found["best"] == by_psnr[::-1]
    assert sorted(found["sizes"]) == [[52, 52]] * 3 + [[208, 208]] * 6
    for key, expected in (
        ("zoomed", (-25, -12.5, 1.25)),
        ("moved", (-30, -19.5, 1.25)),
        ("reset", (0, 0, 1)),
    ):
        (transform,) = found[key]  # one for all pictures
        numbers = [float(text) for text in re.findall(r"-?[\d.]+", transform)]
        assert numbers == pytest.approx(expected, abs=0.1), key
    assert found["requests"] == []
    assert found["fetch"] == "refused"
    assert server.asked == 0
    careless = re.sub("<meta http-equiv=[^>]*>", "", page)
    assert opened(careless, pictures, server)["fetch"] == 204, "else the refusal above proves nothing"
    assert server.asked == 1


def opened(page: str, folder: Path, server: Server) -> dict[str, Any]:
    """What the probe saw in a page that Chromium has opened; it is done before the page counts as loaded."""
    assert BROWSER is not None
    probed = folder / "probed.html"
    probe = PROBE.replace("PORT", str(server.server_port))
    probed.write_text(page.replace("</body>", probe + "</body>"), encoding="utf-8")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += ["--dump-dom", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    assert title, done.stderr
    found: dict[str, Any] = json.loads(html.unescape(title[1]))
    return found


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>"
    scored = Scored(Case(name, name, tmp_path / "absent.png"), (8, 8), scores={"niqe": 1.0})
    write_page(tmp_path / "index.html", [scored], ALWAYS, pictures=0)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert page.count("</script>") == 2
