"""The page in a real browser, with a server that runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serve.browser import Browser, Tab, launched, opened
from tests.serve.running import Client, Held, make_bundle, png, serving, wait_until
from tudsr_runtime import Upscaler
from tudsr_serve.guard import Rules
from tudsr_serve.page import FILE
from tudsr_serve.service import Settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("page") / "mine")


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[Client]:
    with (
        Upscaler(bundle, "onnxruntime", "cpu", threads=1) as upscaler,
        serving({"mine": upscaler, "other": upscaler}, Settings()) as one,
    ):
        yield one


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with launched(tmp_path_factory.mktemp("browser")) as one:
        yield one


@pytest.fixture
def tab(browser: Browser, client: Client, tmp_path: Path) -> Iterator[Tab]:
    with opened(browser, f"http://127.0.0.1:{client.port}/", tmp_path) as one:
        one.until("byId('bundle').options.length === 2")
        yield one
        assert all(url.startswith(("http://127.0.0.1:", "data:", "blob:")) for url in one.requests)


def halves(path: Path, width: int = 60, height: int = 40) -> Path:
    """Black on the left, white on the right."""
    levels = np.zeros((height, width, 3), np.uint8)
    levels[:, width // 2 :] = 255
    Image.fromarray(levels).save(path)
    return path


def level(tab: Tab, x: float, y: float) -> int:
    """The red of the canvas at shares of its width and height."""
    value: int = tab.run(f"context.getImageData(canvas.width * {x}, canvas.height * {y}, 1, 1).data[0]")
    return value


def settled(tab: Tab) -> None:
    """Wait until everything is drawn."""
    tab.until("view.after && !view.drawn && byId('said').textContent === ''")


def done(tab: Tab, *files: Path) -> None:
    tab.choose(*files)
    tab.until(f"document.querySelectorAll('li.done').length === {len(files)}")
    settled(tab)


def test_the_download_is_what_the_service_gives(tab: Tab, client: Client, tmp_path: Path) -> None:
    photo = halves(tmp_path / "my photo.png")
    fields = {"scale": "2.5", "strength": "0.5", "format": "png", "wrap": "xy"}
    expected = client.post("/upscale", photo.read_bytes(), photo.name, **fields)
    for name, value in (fields | {"bundle": "other"}).items():
        tab.run(f"byId('{name}').value = '{value}'; byId('{name}').dispatchEvent(new Event('input'))")
    assert tab.run("document.querySelector('output[for=strength]').value") == "0.5"
    done(tab, photo)
    assert "150 \u00d7 100 px" in tab.run("document.querySelector('li.done p').textContent")
    tab.run("byId('download').click()")
    saved = tmp_path / "my photo_x2.5.png"
    wait_until(lambda: saved.is_file() and saved.stat().st_size == len(expected.body), "the download")
    assert saved.read_bytes() == expected.body
    client.until("tudsr_disk_bytes", 0)  # what the page has, the server does not keep
    assert tab.said == []


def test_the_border_is_dragged_and_moved_by_keys(tab: Tab, tmp_path: Path) -> None:
    done(tab, halves(tmp_path / "a.png"))
    tab.run("view.after.draw = () => true; redraw()")  # where "after" would be, nothing is
    tab.until("!view.drawn")
    alpha = "context.getImageData(canvas.width * {}, canvas.height / 2, 1, 1).data[3]"
    assert [tab.run(alpha.format(x)) for x in (0.45, 0.55)] == [255, 0]
    box, stage = tab.box("#slider"), tab.box("#stage")
    middle = box["x"] + box["width"] / 2, box["y"] + 40
    tab.drag(middle, (stage["x"] + stage["width"] * 0.8, middle[1]))
    assert tab.run("Math.abs(view.split - 0.8) < 0.01")
    tab.until("!view.drawn")
    assert tab.run(alpha.format(0.7)) == 255
    tab.run("byId('slider').focus()")
    tab.press("ArrowLeft")
    assert tab.run("byId('slider').getAttribute('aria-valuenow')") == "78"
    tab.press("Home")
    assert tab.run("byId('slider').getAttribute('aria-valuenow')") == "0"
    tab.until("!view.drawn")
    assert tab.run(alpha.format(0.1)) == 0


def test_zoom_keeps_the_place_under_the_pointer_and_the_picture_in_view(tab: Tab, tmp_path: Path) -> None:
    done(tab, halves(tmp_path / "a.png", 200, 150))
    tab.run("splitAt(0)")
    stage = tab.box("#stage")
    at = stage["x"] + stage["width"] * 0.25, stage["y"] + stage["height"] * 0.5
    place = "(x => view.x + (x * canvas.width - canvas.width / 2) / view.zoom)(0.25)"
    before, fitted = tab.run(place), tab.run("view.zoom")
    for _ in range(10):
        tab.mouse("Wheel", *at, deltaX=0, deltaY=-120)
    tab.until(f"view.zoom > 3 * {fitted}")
    settled(tab)
    assert tab.run(place) == pytest.approx(before, abs=2)
    assert level(tab, 0.25, 0.5) == 0
    tab.drag(at, (at[0] - stage["width"] * 0.2, at[1]))
    assert tab.run(place) > before
    tab.run("canvas.focus()")
    for _ in range(60):
        tab.press("ArrowRight")
    settled(tab)
    assert level(tab, 0.99, 0.5) == 255, "the picture's edge is the view's"
    for key in ("1", "+", "-"):
        tab.press(key, key)
    assert tab.run("byId('zoom').value") == "100 %"
    tab.press("0", "0")
    assert tab.run("view.zoom") == pytest.approx(fitted)


def test_a_large_result_is_shown_in_parts_and_the_page_does_not_wait(tab: Tab, tmp_path: Path) -> None:
    # As if it had been enlarged, which would take minutes.
    tab.run(
        "Item.prototype.run = async function () {"
        " this.result = this.file; this.size = [8800, 8000]; this.set('done', ''); show(this) }; 0"
    )
    done(tab, halves(tmp_path / "large.png", 8800, 8000))
    assert tab.run("view.after.whole === undefined && view.after.small.width === OVERVIEW")
    tab.run(
        "globalThis.frames = 0; (function tick() {"
        " frames += byId('said').textContent.startsWith('details'); requestAnimationFrame(tick) })()"
    )
    tab.run("splitAt(0); byId('pixels').click()")
    tab.until("view.after.part")
    settled(tab)
    assert tab.run("view.zoom") == 1
    assert [level(tab, x, 0.5) for x in (0.4, 0.6)] == [0, 255]
    width = tab.run("view.after.part.image.width")
    assert 0 < width < 8800
    assert tab.run("frames") > 0, "the page draws on while the picture is decoded elsewhere"


def test_an_error_is_said_in_words_and_can_be_mended(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    photo = halves(tmp_path / "b.png", 300, 300)
    tab.run("byId('scale').value = '99'")
    tab.choose(tmp_path / "notes.png", photo)
    tab.until("document.querySelectorAll('li.failed').length === 2")
    said = tab.run("[...document.querySelectorAll('li.failed p')].map(p => p.textContent)")
    assert "not a picture" in said[0]
    assert "scale must be 1 to 32" in said[1]
    assert "failed" in tab.run("byId('status').textContent")
    again = "document.querySelector('[aria-label=\"Again b.png\"]')"
    tab.run(f"byId('scale').value = '2'; {again}.focus(); {again}.click()")
    assert tab.run("document.activeElement.closest('li') !== null"), "the focus stays in the list"
    tab.until("document.querySelectorAll('li.done').length === 1")
    tab.run("document.querySelector('[aria-label=\"Remove notes.png\"]').click()")
    assert tab.run("document.querySelectorAll('li').length") == 1


def test_a_tiff_is_shown_by_a_smaller_copy_and_downloaded_whole(tab: Tab, tmp_path: Path) -> None:
    done(tab, halves(tmp_path / "a.tif"))
    assert [level(tab, x, 0.5) for x in (0.2, 0.8)] == [0, 255]
    tab.choose(halves(tmp_path / "b.tif", 300, 20))
    tab.until("document.querySelectorAll('li.done').length === 2")
    tab.run("show(items[1]); 0")
    tab.until("view.after && !view.drawn && byId('said').textContent.startsWith('A smaller copy')")
    assert [level(tab, x, 0.5) for x in (0.2, 0.8)] == [0, 255]
    assert tab.run("view.after.width < items[1].size[0] && !byId('slider').hidden")
    tab.run("byId('download').click()")
    saved = tmp_path / "b_x8.tif"
    wait_until(saved.is_file, "the download")
    with Image.open(saved) as image:
        assert image.size == (2400, 160)


def test_a_result_that_the_browser_cannot_show_can_be_downloaded(tab: Tab, tmp_path: Path) -> None:
    tab.run("Object.defineProperty(Item.prototype, 'previews', { get: () => ({}), set: () => {} }); 0")
    tab.run("byId('format').value = 'tif'")
    tab.choose(halves(tmp_path / "a.png"))
    tab.until("byId('said').textContent.includes('can be downloaded')")
    tab.run("byId('download').click()")
    wait_until(lambda: (tmp_path / "a_x8.tif").is_file(), "the download")


def test_on_a_phone_and_in_the_dark_nothing_is_cut_off(tab: Tab, tmp_path: Path) -> None:
    light = tab.run("getComputedStyle(document.body).backgroundColor")
    tab.size(360, 740, 2, mobile=True)
    tab.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    done(
        tab, halves(tmp_path / "a-name-that-is-longer-than-a-phone-is-wide-and-has-no-place-to-break-it.png")
    )
    assert tab.run("document.documentElement.scrollWidth") == 360
    assert tab.run("document.querySelector('li strong').getBoundingClientRect().right") < 360
    assert tab.run("getComputedStyle(document.body).backgroundColor") != light
    small = tab.run(
        "[...document.querySelectorAll('button')].filter(b => b.offsetParent)"
        ".map(b => b.getBoundingClientRect())"
        ".filter(b => b.height < 24 || b.width < 24 || b.right > 360).length"
    )
    assert small == 0


def test_everything_has_a_name_for_those_who_do_not_see_it(tab: Tab, tmp_path: Path) -> None:
    done(tab, halves(tmp_path / "a.png"))
    assert tab.run("document.documentElement.scrollHeight") == 800, "only the list scrolls"
    nodes: list[dict[str, Any]] = tab.do("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "spinbutton", "combobox", "textbox", "img", "image", "progressbar"}
    found = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if not node.get("ignored") and node["role"]["value"] in roles
    ]
    assert len(found) > 12
    assert all(name for _, name in found), found
    assert ("slider", "Border between before and after") in found


def test_pictures_wait_for_each_other_and_who_leaves_leaves_nothing(
    browser: Browser, bundle: Path, tmp_path: Path
) -> None:
    Held.gate = threading.Event()
    with (
        Held(bundle, "onnxruntime", "cpu", threads=1) as upscaler,
        serving({"mine": upscaler}, Settings(queue=1)) as client,
        opened(browser, f"http://127.0.0.1:{client.port}/", tmp_path) as tab,
    ):
        client.post("/jobs", png())
        client.until("tudsr_running", 1)
        client.post("/jobs", png())
        tab.choose(*(halves(tmp_path / f"{name}.png") for name in "abc"))
        tab.until("document.querySelector('li p').textContent.includes('busy')")
        Held.gate.set()
        tab.until("document.querySelectorAll('li.done').length === 3")
        Held.gate.clear()
        tab.choose(tmp_path / "a.png")
        client.until("tudsr_running", 1)
        tab.until("items.some(item => item.job)")
        tab.do("Page.navigate", url="about:blank")
        client.until('tudsr_jobs_total{state="cancelled"}', 1)
        Held.gate.set()


def test_the_page_asks_for_a_token(browser: Browser, bundle: Path, tmp_path: Path) -> None:
    token = "a-token-of-some-length"
    with (
        Upscaler(bundle, "onnxruntime", "cpu", threads=1) as upscaler,
        serving({"mine": upscaler}, Settings(Rules(token=token))) as client,
        opened(browser, f"http://127.0.0.1:{client.port}/", tmp_path) as tab,
    ):
        tab.until("!byId('token-form').hidden")
        tab.run(f"byId('token').value = '{token}'; document.querySelector('#token-form button').click()")
        tab.until("byId('bundle').options.length === 1")
        done(tab, halves(tmp_path / "a.png"))


def test_the_page_is_one_file_that_names_no_other() -> None:
    page = FILE.read_text(encoding="utf-8")
    assert "://" not in page.replace("http://www.w3.org", "")
    assert "src=" not in page
