"""Does a server's memory grow? Mixed requests, good, bad and broken off, against `tudsr serve`.

    python -m benchmarks.serve [--requests 300] [--bundle nano|DIR]

Without --bundle, a model that enlarges bilinearly is generated: the service is what is measured. Prints
the resident memory at the start, and the median of each third of the requests; a service that leaks a
picture of 100 x 75 px, enlarged by 8, in a quarter of the requests grows by 0.36 MB a request.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.serve.running import Client, form, head, make_bundle, png

TUDSR = Path(sys.executable).with_name("tudsr")


@contextlib.contextmanager
def server(bundle: str, *options: str) -> Iterator[tuple[Client, psutil.Process]]:
    """`tudsr serve` on a free port: who asks it, and its process."""
    command = [str(TUDSR), "serve", "--port", "0", "-q", "--bundle", bundle, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            yield Client(int(address.rstrip("/").rpartition(":")[2])), psutil.Process(process.pid)
        finally:
            process.terminate()


def at_once(client: Client) -> None:
    """A picture that is waited for."""
    assert client.post("/upscale", png(100, 75), scale=8).status == 200


def other_format(client: Client) -> None:
    """One in a format that Pillow encodes."""
    answer = client.post("/upscale", png(100, 75, "RGBA"), scale=8, format="webp", strength=0.5)
    assert answer.status == 200


def as_job(client: Client) -> None:
    """A job whose result is fetched and left there."""
    job = client.post("/jobs", png(100, 75, kind="JPEG"), "photo.jpg", scale=8).json["id"]
    *_, (state, told) = client.events(job)
    assert state == "done"
    assert client.get(f"/{told['result']}").status == 200


def given_up(client: Client) -> None:
    """A job that is given up at once."""
    job = client.post("/jobs", png(100, 75), scale=8).json["id"]
    assert client.ask("DELETE", f"/jobs/{job}").status == 204


def broken_off(client: Client) -> None:
    """An upload that ends in the middle, and a client that leaves before his picture comes."""
    body, kind = form(png(100, 75), scale=8)
    for part in (body[: len(body) // 2], body):
        with client.connected() as leaving:
            leaving.sendall(head(kind, len(body)) + part)


def refused(client: Client) -> None:
    """No picture; a field that is none; a place that is none."""
    assert client.post("/upscale", b"x" * 100_000).status == 422
    assert client.post("/upscale", png(), scale=99).status == 400
    assert client.get("/nothing").status == 404


MIXED: tuple[Callable[[Client], None], ...] = (
    at_once,
    other_format,
    as_job,
    given_up,
    broken_off,
    refused,
    at_once,
    refused,
)


def memory(client: Client, process: psutil.Process, requests: int) -> list[int]:
    """Resident bytes before the first and after each of so many mixed requests."""
    found = [process.memory_info().rss]
    for number in range(requests):
        MIXED[number % len(MIXED)](client)
        # What a picture at work takes would be counted by chance.
        client.until("tudsr_waiting", 0)
        client.until("tudsr_running", 0)
        found.append(process.memory_info().rss)
    return found


def thirds(found: list[int]) -> tuple[float, float, float]:
    """The medians of the thirds, in MB."""
    third = len(found) // 3
    first, second, last = (
        statistics.median(found[start : start + third]) / 1e6 for start in (0, third, len(found) - third)
    )
    return first, second, last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--bundle")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or str(make_bundle(Path(folder, "bilinear")))
        options = ("--threads", "1", "--keep", "5")
        with server(bundle, *options) as (client, process):
            started = time.monotonic()
            found = memory(client, process, args.requests)
            seconds = time.monotonic() - started
            client.until("tudsr_disk_bytes", 0)
    first, second, last = thirds(found)
    sys.stdout.write(
        f"{args.requests} requests in {seconds:.0f} s, {args.bundle or 'generated model'}\n"
        f"resident: {found[0] / 1e6:.0f} MB at the start, medians of the thirds "
        f"{first:.1f}, {second:.1f} and {last:.1f} MB, most {max(found) / 1e6:.0f} MB\n"
    )


if __name__ == "__main__":
    main()
