"""What `/metrics` tells, in the text format of Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

from tudsr_serve.jobs import Job, Jobs
from tudsr_serve.worker import Worker

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Figures:
    """Counts answers and jobs. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._jobs: Counter[str] = Counter()
        self._seconds = 0.0
        self._pixels = 0

    def answer(self, method: str, route: str, status: int) -> None:
        """Count an answer."""
        with self._lock:
            # A client may call its method anything.
            self._answers[method if method in ("GET", "POST", "DELETE") else "other", route, status] += 1

    def job(self, job: Job) -> None:
        """Count a job that has ended."""
        with self._lock:
            self._jobs[job.state] += 1
            if job.state == "done":
                self._seconds += job.seconds or 0
                self._pixels += job.planned.plan.output_width * job.planned.plan.output_height

    def text(self, worker: Worker, jobs: Jobs) -> str:
        """The answer of `/metrics`: all counters, and the gauges as they are now."""
        with self._lock:
            return "\n".join([*self._counted(), *_now(worker, jobs), ""])

    def _counted(self) -> Iterator[str]:
        yield from _named("tudsr_answers_total", "counter", "Answers, by route and status.")
        for (method, route, status), count in sorted(self._answers.items()):
            yield f'tudsr_answers_total{{method="{method}",route="{route}",status="{status}"}} {count}'
        yield from _named("tudsr_jobs_total", "counter", "Jobs that have ended, by how.")
        for state in ("done", "failed", "cancelled"):
            yield f'tudsr_jobs_total{{state="{state}"}} {self._jobs[state]}'
        yield from _named("tudsr_job_seconds_total", "counter", "Time at work on jobs that are done.")
        yield f"tudsr_job_seconds_total {self._seconds:.3f}"
        yield from _named("tudsr_output_pixels_total", "counter", "Pixels of their results.")
        yield f"tudsr_output_pixels_total {self._pixels}"


def _now(worker: Worker, jobs: Jobs) -> Iterator[str]:
    for name, text, value in (
        ("tudsr_waiting", "Jobs that wait.", worker.waiting),
        ("tudsr_waiting_most", "Jobs that may wait.", worker.places),
        ("tudsr_running", "Jobs at work.", int(worker.running)),
        ("tudsr_disk_bytes", "Bytes of uploads and results.", jobs.bytes()),
    ):
        yield from _named(name, "gauge", text)
        yield f"{name} {value}"


def _named(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"
