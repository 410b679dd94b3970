"""The service as clients know it: pictures, jobs with progress, limits, names, who may ask."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from tests.serve.running import Client, Held, form, head, make_bundle, png, serving, wait_until
from tudsr_runtime import Upscaler
from tudsr_serve.form import FIELDS
from tudsr_serve.guard import Rules
from tudsr_serve.intake import Limits
from tudsr_serve.service import Settings

TUDSR = Path(sys.executable).with_name("tudsr")
Start = Callable[..., Client]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("serve") / "mine")


@pytest.fixture
def start(bundle: Path) -> Iterator[Start]:
    """`start(rules=..., limits=..., queue=..., keep=...)`: the client of a server of its own."""
    with ExitStack() as held:

        def begin(kind: type[Upscaler] = Upscaler, **settings: Any) -> Client:
            upscaler = held.enter_context(kind(bundle, "onnxruntime", "cpu", threads=1))
            running: AbstractContextManager[Client] = serving({"mine": upscaler}, Settings(**settings))
            return held.enter_context(running)

        yield begin


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    Held.gate = threading.Event()
    yield Held.gate
    Held.gate.set()


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[Client]:
    with (
        Upscaler(bundle, "onnxruntime", "cpu", threads=1) as upscaler,
        serving({"mine": upscaler}, Settings()) as one,
    ):
        yield one


PICTURES: list[tuple[str, str, dict[str, object]]] = [
    ("PNG", "photo.png", {}),
    ("PNG", "photo.png", {"scale": 2.5, "format": "jpg", "quality": 60}),
    ("JPEG", "photo.jpg", {"width": 200, "strength": "0.5,1", "color": "adain"}),
    ("PNG", "photo.jpg", {"scale": 2, "metadata": "strip"}),
    ("TIFF", "photo.tif", {"factors": "4x-", "compression": 9}),
    ("WEBP", "photo.webp", {"longest": 100, "overlap": 64, "wrap": "xy"}),
]


@pytest.mark.parametrize(("kind", "name", "fields"), PICTURES)
def test_the_picture_is_the_commands(
    client: Client, bundle: Path, tmp_path: Path, kind: str, name: str, fields: dict[str, object]
) -> None:
    picture = png(kind=kind)
    (tmp_path / name).write_bytes(picture)
    words = [word for key, value in fields.items() for word in (f"--{key}", str(value))]
    device = ["--backend", "onnxruntime", "--device", "cpu", "--threads", "1"]
    command = [TUDSR, "upscale", name, "--bundle", bundle, *device, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    made = tmp_path / done.stdout.strip()
    answer = client.post("/upscale", picture, name, **fields)
    assert answer.status == 200, answer.body
    assert answer.body == made.read_bytes()
    assert answer.headers["content-disposition"] == f"attachment; filename*=utf-8''{made.name}"


def test_a_job_tells_its_progress_and_keeps_its_result(client: Client) -> None:
    begun = client.post("/jobs", png(300, 200), "a b.png", scale=4)
    assert begun.status == 202
    job = begun.json["id"]
    assert begun.headers["location"] == f"jobs/{job}"
    told = list(client.events(job))
    assert [event for event, _ in told][-1] == "done"
    assert [one["done"] for _, one in told] == sorted(one["done"] for _, one in told)
    last = told[-1][1]
    assert last["done"] == last["tiles"] > 1
    assert (last["input_px"], last["output_px"], last["name"]) == ([300, 200], [1200, 800], "a b.png")
    assert last["result_name"] == "a b_x4.png"
    for _ in range(2):
        assert client.get(f"/{last['result']}").image.size == (1200, 800)
    assert client.get(f"/jobs/{job}").json == last
    assert last["previews"] == {}, "browsers show a PNG"
    assert client.get(f"/jobs/{job}/preview/after").error["type"] == "NotHere"
    assert client.ask("DELETE", f"/jobs/{job}").status == 204
    assert client.get(f"/jobs/{job}").error["type"] == "NotHere"


@pytest.mark.parametrize(
    ("kind", "width", "height", "mode"), [("TIFF", 40, 30, "RGB"), ("PNG", 12, 300, "L")]
)
def test_a_tiff_has_small_pngs_for_browsers(
    client: Client, kind: str, width: int, height: int, mode: str
) -> None:
    picture = png(width, height, mode, kind)
    job = client.post("/jobs", picture, "a", scale=8, format="tif").json["id"]
    last = list(client.events(job))[-1][1]
    assert set(last["previews"]) == ({"before", "after"} if kind == "TIFF" else {"after"})
    result = client.get(f"/{last['result']}").image
    after = client.get(f"/{last['previews']['after']}")
    assert after.headers["content-type"] == "image/png"
    assert (after.image.mode, max(after.image.size) <= 2048) == (result.mode, True)
    shrunk = np.asarray(result.reduce(-(-max(result.size) // 2048))).astype(float)
    assert np.abs(np.asarray(after.image) - shrunk).max() <= 1.5
    if kind == "TIFF":
        before = client.get(f"/{last['previews']['before']}").image
        assert np.array_equal(np.asarray(before), np.asarray(Image.open(io.BytesIO(picture))))
    assert client.get(f"/jobs/{job}/preview/lock").status == 422
    client.ask("DELETE", f"/jobs/{job}")
    assert client.get(f"/jobs/{job}/preview/after").status == 404


REFUSED: list[tuple[bytes, dict[str, object], int, str, int | None]] = [
    (b"", {}, 422, "the file is empty", 3),
    (b"GIF89a...", {}, 422, "the file is a GIF", 3),
    (png()[:100], {}, 422, "damaged or cut short", 3),
    (png(), {"scale": 33}, 400, "scale must be 1 to 32", 2),
    (png(), {"scale": "nan"}, 400, "scale: ", 2),
    (png(), {"scale": "big"}, 400, "scale: ", 2),
    (png(), {"quality": 101}, 400, "quality: ", 2),
    (png(), {"scal": 2}, 400, "no field 'scal'", 2),
    (png(), {"threads": 2}, 400, "no field 'threads'", 2),
    (png(), {"output": "/etc/passwd"}, 400, "no field 'output'", 2),
    (png(), {"scale": 2, "width": 80}, 400, "both say how large", 2),
    (png(), {"format": "exe"}, 400, "cannot write 'exe'", 2),
    (png(), {"format": "../../x.png"}, 400, "cannot write", 2),
    (png(), {"bundle": "../nano"}, 400, "no bundle '../nano' here", 2),
    (png(), {"strength": "2"}, 400, "strength must be", 2),
    (png(), {"color": "nice"}, 400, "colo", 2),
    (png(), {"wrap": "y"}, 400, "wrap: ", 2),
    (png(mode="RGBA"), {"format": "jpg"}, 400, "cannot hold the transparency", 2),
]


@pytest.mark.parametrize(("picture", "fields", "status", "said", "code"), REFUSED)
def test_an_error_is_json_with_the_commands_code(
    client: Client, picture: bytes, fields: dict[str, object], status: int, said: str, code: int | None
) -> None:
    answer = client.post("/upscale", picture, **fields)
    assert answer.status == status
    assert said in answer.error["message"]
    assert (answer.error["exit_code"], answer.error["status"]) == (code, status)
    assert "/" not in answer.error["message"].replace("/upscale", "").replace("'../", "").replace(
        "/x.png", ""
    )
    assert "-o " not in (answer.error["hint"] or "")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", ["9" * 400, "x" * 4000])
def test_a_long_value_is_not_said_again_whole(client: Client, field: str, value: str) -> None:
    answer = client.post("/upscale", png(8, 8), **{field: value})
    assert answer.status == 400
    assert len(answer.error["message"]) < 300


def test_what_is_no_form_is_refused(client: Client) -> None:
    for body, kind, said in (
        (b"x", "image/png", "a form (multipart/form-data) is needed"),
        (b"x", "multipart/form-data", "cannot be read"),
        (b"x", "multipart/form-data; boundary=abc", "cannot be read"),
        (*form(png(), scale=2), None),
    ):
        answer = client.ask("POST", "/upscale", body, {"Content-Type": kind})
        assert answer.status == (400 if said else 200)
        assert not said or said in answer.error["message"]
    twice, kind = form(png(), scale=2)
    mark = kind.partition("boundary=")[2]
    twice = f'--{mark}\r\nContent-Disposition: form-data; name="scale"\r\n\r\n3\r\n'.encode() + twice
    assert "2 times" in client.ask("POST", "/upscale", twice, {"Content-Type": kind}).error["message"]
    text = f'--{mark}\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--{mark}--\r\n'.encode()
    assert "holds no file" in client.ask("POST", "/upscale", text, {"Content-Type": kind}).error["message"]


@pytest.mark.parametrize(
    "name", ["../../etc/x.png", "C:\\a\\b.png", "a\u202eb.png", "", "." * 300, "é" * 300, "x\ud800"]
)
def test_a_name_of_a_file_is_never_a_path(client: Client, name: str) -> None:
    body, kind = form(png(8, 8), "NAME", scale=2)
    body = body.replace(b"NAME", name.encode("utf-8", "surrogatepass"))
    answer = client.ask("POST", "/jobs", body, {"Content-Type": kind})
    assert answer.status == 202, answer.body
    told = list(client.events(answer.json["id"]))[-1][1]
    assert told["status"] == "done"
    for shown in (told["name"], told["result_name"]):
        assert shown
        assert len(shown) <= 110
        assert not set(shown) & {"/", "\\", "\u202e"}


def test_sizes_are_looked_at_before_anything_is_decoded(start: Start) -> None:
    limits = Limits(max_upload_bytes=20_000, max_input_megapixels=1, max_output_megapixels=1)
    client = start(rules=Rules(max_bytes=20_000), limits=limits)
    assert client.post("/upscale", png(16, 16), scale=2).status == 200
    large = client.post("/upscale", b"x" * 30_000)
    assert (large.status, large.error["type"]) == (413, "TooLarge")
    assert "larger than 0.02 MB" in large.error["message"]
    larger = client.post("/upscale", b"x" * 1_000_000)
    assert (larger.status, larger.error["type"]) == (413, "TooLarge")
    # The pixels of a bomb are never there: its header alone is enough.
    bomb = client.post("/upscale", bomb_png(30_000, 30_000), scale=1)
    assert bomb.status in (413, 422)
    wide = client.post("/upscale", bomb_png(1200, 1000), scale=1)
    assert (wide.status, wide.error["message"]) == (413, "1200 x 1000 px are 1.2 megapixels, more than 1")
    grown = client.post("/upscale", png(60, 60), scale=32)
    assert (grown.status, grown.error["exit_code"]) == (422, 3)
    assert grown.error["hint"].startswith("scale=")
    scale = float(grown.error["hint"].removeprefix("scale="))
    assert client.post("/upscale", png(60, 60), scale=scale, format="jpg").status == 200


def bomb_png(width: int, height: int) -> bytes:
    """A sound header of a picture whose pixels are not there."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_only_so_many_wait_and_the_others_are_told_when_to_come_again(
    start: Start, gate: threading.Event
) -> None:
    client = start(Held, queue=2)
    jobs = [client.post("/jobs", png()).json["id"]]
    client.until("tudsr_running", 1)
    jobs += [client.post("/jobs", png()).json["id"] for _ in range(2)]
    refused = client.post("/upscale", png())
    assert (refused.status, refused.error["type"]) == (429, "Busy")
    assert int(refused.headers["retry-after"]) >= 1
    assert [client.get(f"/jobs/{job}").json["ahead"] for job in jobs] == [0, 1, 2]
    assert client.get(f"/jobs/{jobs[0]}/result").error["type"] == "NotYet"
    client.ask("DELETE", f"/jobs/{jobs[1]}")
    assert client.post("/jobs", png()).status == 202, "who is given up leaves his place"
    gate.set()
    assert [*client.events(jobs[2])][-1][0] == "done"


@pytest.mark.usefixtures("gate")
def test_who_leaves_gives_his_picture_up(start: Start) -> None:
    client = start(Held)
    body, kind = form(png(600, 400))
    with client.connected() as leaving:
        leaving.sendall(head(kind, len(body)) + body)
        client.until("tudsr_running", 1)
    client.until('tudsr_jobs_total{state="cancelled"}', 1)
    client.until("tudsr_disk_bytes", 0)
    job = client.post("/jobs", png()).json["id"]
    client.until("tudsr_running", 1)
    assert client.ask("DELETE", f"/jobs/{job}").status == 204
    client.until('tudsr_jobs_total{state="cancelled"}', 2)
    client.until("tudsr_disk_bytes", 0)


@pytest.mark.usefixtures("gate")
def test_a_job_that_was_watched_and_is_not_any_more_is_given_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tudsr_serve.jobs.ABANDONED_SECONDS", 0.2)
    client = start(Held)
    watched, polled = (client.post("/jobs", png()).json["id"] for _ in range(2))
    next(client.events(watched))
    client.until('tudsr_jobs_total{state="cancelled"}', 1)
    assert client.get(f"/jobs/{watched}").status == 404
    # The worker counts the one before it takes the other.
    wait_until(lambda: client.get(f"/jobs/{polled}").json["status"] == "running", "the other runs")


def test_a_bug_is_reported_to_the_server_and_tells_clients_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("secret")

    monkeypatch.setattr("tudsr_serve.routes._info", broken)
    monkeypatch.setattr("tudsr_serve.worker.write_picture", broken)
    client = start()
    for answer in (client.get("/info"), client.post("/upscale", png())):
        assert (answer.status, answer.error["type"], answer.error["exit_code"]) == (500, "Bug", 1)
        assert b"secret" not in answer.body
    # Of a job it is told while the answer is on its way.
    wait_until(lambda: len(client.bugs) >= 2, "both bugs are reported")
    assert client.get("/healthz").status == 200
    assert [str(bug) for bug in client.bugs] == ["secret"] * 2


@pytest.mark.usefixtures("gate")
def test_a_picture_that_takes_too_long_is_given_up(start: Start) -> None:
    client = start(Held, limits=Limits(deadline=0.5))
    answer = client.post("/upscale", png())
    assert (answer.status, answer.error["type"]) == (504, "DeadlinePassed")
    running, waiting = (client.post("/jobs", png()).json["id"] for _ in range(2))
    for job in (running, waiting):
        assert list(client.events(job))[-1][1]["error"]["type"] == "DeadlinePassed"
    client.until("tudsr_disk_bytes", 0)


def test_results_are_removed_when_they_are_old_and_when_there_are_too_many(start: Start) -> None:
    client = start(keep=0.1)
    job = client.post("/jobs", png()).json["id"]
    wait_until(lambda: client.get(f"/jobs/{job}").status == 404, "the result is removed")
    client.until("tudsr_disk_bytes", 0)
    small = start(limits=Limits(max_disk_bytes=60_000))
    jobs = [small.post("/jobs", png(), scale=4).json["id"] for _ in range(3)]
    wait_until(lambda: small.get(f"/jobs/{jobs[0]}").status == 404, "the oldest goes")
    assert small.figure("tudsr_disk_bytes") <= 60_000 + 60_000


def test_only_who_has_the_token_is_answered(start: Start) -> None:
    client = start(rules=Rules(token="a-token-of-some-length"))
    right = {"Authorization": "Bearer a-token-of-some-length"}
    for path in ("/", "/healthz"):
        assert client.get(path).status == 200
    for method, path in (
        ("POST", "/upscale"),
        ("POST", "/jobs"),
        ("GET", "/jobs/x"),
        ("GET", "/metrics"),
        ("GET", "/info"),
        ("GET", "/openapi.json"),
    ):
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic a-token-of-some-length"},
        ):
            answer = client.ask(method, path, headers=headers)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert client.ask(method, path, headers=right).status != 401
    body, kind = form(png())
    assert client.ask("POST", "/upscale", body, {**right, "Content-Type": kind}).status == 200


def test_pages_of_others_and_other_names_are_refused(start: Start) -> None:
    client = start(rules=Rules(hosts={"localhost", "127.0.0.1"}))
    assert client.get("/info", Host="evil.example").status == 403
    assert client.get("/info", Host="[").status == 403
    assert client.get("/info", Host=f"localhost:{client.port}").status == 200
    own = f"http://127.0.0.1:{client.port}"
    body, kind = form(png(8, 8), scale=2)
    for origin, status in ((own, 200), ("https://evil.example", 403), ("null", 403)):
        answer = client.ask("POST", "/upscale", body, {"Content-Type": kind, "Origin": origin})
        assert answer.status == status
        assert "access-control-allow-origin" not in answer.headers


def test_cors_is_for_the_origins_that_were_named(start: Start) -> None:
    client = start(rules=Rules(origins=["https://friend.example"]))
    asked = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
    answer = client.ask("OPTIONS", "/upscale", headers=asked)
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert (
        client.ask("OPTIONS", "/upscale", headers={**asked, "Origin": "https://evil.example"}).status == 403
    )


def test_openapi_names_every_route_and_field(client: Client) -> None:
    api = client.get("/openapi.json").json
    assert {"/upscale", "/jobs", "/jobs/{identity}", "/jobs/{identity}/events", "/healthz"} <= set(
        api["paths"]
    )
    body = api["paths"]["/upscale"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert body["required"] == ["file"]
    assert {"file", "scale", "strength", "bundle", "format"} <= set(body["properties"])
    assert body["properties"]["quality"]["maximum"] == 100
    assert all(one.get("description") for one in body["properties"].values())


@pytest.mark.usefixtures("gate")
def test_nothing_of_the_files_stays_when_the_server_stops(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (left := tmp_path / "tudsr-serve-killed").mkdir()
    (left / "lock").touch()
    (left / "picture.png").write_bytes(png())
    with (
        Held(bundle, "onnxruntime", "cpu", threads=1) as upscaler,
        serving({"mine": upscaler}, Settings()) as client,
    ):
        assert not left.exists()
        client.post("/jobs", png())
        client.until("tudsr_running", 1)
        assert [path.name[:12] for path in tmp_path.iterdir()] == ["tudsr-serve-"]
    assert list(tmp_path.iterdir()) == []
