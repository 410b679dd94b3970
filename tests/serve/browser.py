"""Headless Chromium, driven by its own protocol over a pipe, which needs nothing installed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
PATIENCE = 120


@dataclass
class Browser:
    """The two ends of the pipe. Commands with `tab` are for that page."""

    commands: BinaryIO
    answers: FileIO
    _number: int = 0
    _received: bytearray = field(default_factory=bytearray)

    def do(self, method: str, tab: Tab | None = None, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if tab is not None:
            message["sessionId"] = tab.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while (answer := self._next()).get("id") != self._number:
            if tab is not None and answer.get("sessionId") == tab.session:
                tab.note(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self.answers], [], [], PATIENCE)
            piece = os.read(self.answers.fileno(), 1 << 16) if ready else b""
            assert piece, "the browser has ended, or hangs"
            self._received += piece
        message, _, rest = self._received.partition(b"\0")
        self._received = bytearray(rest)
        found: dict[str, Any] = json.loads(message)
        return found


@dataclass
class Tab:
    """One page. Coordinates are px of the page."""

    browser: Browser
    session: str
    said: list[str] = field(default_factory=list)
    """Errors of the page's script, and what it logs."""
    requests: list[str] = field(default_factory=list)

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; its result."""
        return self.browser.do(method, self, **parameters)

    def note(self, event: dict[str, Any]) -> None:
        """Keep what the page says by itself."""
        told = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.said.append(json.dumps(told["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded":
            self.said.append(told["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])

    def run(self, script: str) -> Any:
        """The value of an expression, waited for if it is a promise."""
        found = self.do("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < end, (script, self.run("document.body.innerText"), self.said)
            time.sleep(0.05)
        return value

    def choose(self, *files: Path) -> None:
        """Choose files as the person at the page would."""
        root = self.do("DOM.getDocument")["root"]["nodeId"]
        node = self.do("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
        self.do("DOM.setFileInputFiles", files=[str(file) for file in files], nodeId=node)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """`kind`: Pressed, Released, Moved or Wheel."""
        button = {"button": "left", "buttons": 1, "clickCount": 1} if kind != "Wheel" else {}
        self.do("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **button, **more)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.mouse("Pressed", *start)
        for share in (0.5, 1):
            self.mouse("Moved", *(a + (b - a) * share for a, b in zip(start, end, strict=True)))
        self.mouse("Released", *end)

    def press(self, key: str, text: str = "") -> None:
        self.do("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, text=text)
        self.do("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def box(self, selector: str) -> dict[str, float]:
        found: dict[str, float] = self.run(
            f"(({{x, y, width, height}}) => ({{x, y, width, height}}))"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        return found

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"]))

    def size(self, width: int, height: int, ratio: float = 1, mobile: bool = False) -> None:
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=ratio,
            mobile=mobile,
        )


@contextmanager
def launched(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in `folder`. Skips where there is none."""
    if BROWSER is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    to_browser, ours_to = os.pipe()
    ours_from, from_browser = os.pipe()
    # The protocol is spoken on the descriptors 3 and 4.
    shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
    with (
        open(ours_to, "wb") as commands,
        open(ours_from, "rb", buffering=0) as answers,
        subprocess.Popen(
            ["bash", "-c", shell, "-", BROWSER, *flags, f"--user-data-dir={folder / 'profile'}"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Browser(commands, answers)
        finally:
            process.kill()


@contextmanager
def opened(browser: Browser, address: str, folder: Path) -> Iterator[Tab]:
    """The page at that address; downloads go to `folder`."""
    context = browser.do("Target.createBrowserContext")["browserContextId"]
    browser.do(
        "Browser.setDownloadBehavior",
        behavior="allow",
        downloadPath=str(folder),
        browserContextId=context,
    )
    target = browser.do("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
    session = browser.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    tab = Tab(browser, session)
    for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
        tab.do(f"{domain}.enable")
    tab.size(1280, 800)
    tab.do("Page.navigate", url=address)
    tab.until("document.readyState === 'complete' && location.href !== 'about:blank'")
    yield tab
    browser.do("Target.disposeBrowserContext", browserContextId=context)
