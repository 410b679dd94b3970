"""Measurements as Markdown for people and JSON for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tudsr_runtime.bench.latency import Latency
from tudsr_runtime.bench.measure import Durations
from tudsr_runtime.terminal import counted


def latency_record(latency: Latency) -> dict[str, Any]:
    """One measurement as plain JSON; seconds."""
    return {
        **latency.plan.as_json(),
        "parts": {name: dataclasses.asdict(found) for name, found in latency.parts.items()},
        "engines": dataclasses.asdict(latency.engines),
        "array_to_array": dataclasses.asdict(latency.array_to_array),
        "file_to_file": dataclasses.asdict(latency.file_to_file),
    }


def latency_markdown(latency: Latency) -> str:
    """A table of the parts and of the whole."""
    plan = latency.plan
    rows = {
        **latency.parts,
        "all engines": latency.engines,
        "array to array": latency.array_to_array,
        "file to file": latency.file_to_file,
    }
    whole, engines = latency.array_to_array.p50, latency.engines.p50
    title = (
        f"{plan.width} x {plan.height} to {plan.output_width} x {plan.output_height}, factors {plan.reason}"
    )
    return "\n".join(
        [
            f"{title}: {counted(plan.tiles, 'tile')}",
            "",
            "| part | p50 s | p90 s | min s |",
            "|---|---|---|---|",
            *(f"| {name} | {seconds(found)} |" for name, found in rows.items()),
            "",
            f"Array to array takes {whole / engines:.2f} x the time of all engines, "
            f"file to file {latency.file_to_file.p50 / engines:.2f} x.",
        ]
    )


def seconds(found: Durations) -> str:
    """Three cells: p50, p90 and min."""
    return " | ".join(f"{value:.4f}" for value in (found.p50, found.p90, found.min))


def facts_markdown(facts: Mapping[str, object]) -> str:
    """A list of what has to be known to read the figures."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())
