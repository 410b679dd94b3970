"""Engines as tables: layers, precisions, fusions, memory. Read from what was kept when they were built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tudsr_runtime.engines.tensorrt.layers import Layer
from tudsr_runtime.engines.tensorrt.record import BuiltPlan, EngineRecord
from tudsr_runtime.typed import parse_json, read_typed

SHOWN_FUSIONS = 5


def summary_lines(record: EngineRecord) -> Iterator[str]:
    """A line for each engine: seconds, sizes, memory, kernels."""
    for plan in record.plans.values():
        facts = plan.facts
        yield (
            f"{plan.component:<16}{facts.seconds:7.1f} s  plan {_mb(facts.plan_bytes):>9}  "
            f"weights {_mb(facts.weight_bytes):>9}  activations {_mb(facts.activation_bytes):>9}  "
            f"{sum(facts.nodes.values()):>5} layers -> {_count(facts.kernels):>5} kernels, "
            f"{_count(facts.fused_attention)} of fused attention, {facts.casts} casts"
        )


def inspect(folder: Path, record: EngineRecord) -> Iterator[str]:
    """The tables of every engine of a folder."""
    yield f"{record.library} {record.version} for {record.target} ({record.platform}), bundle {record.bundle}"
    yield from summary_lines(record)
    for plan in record.plans.values():
        layers = kept_layers(folder, plan)
        yield ""
        yield f"{plan.component}: {_tensors(plan)}"
        yield f"  network   {_counts(Counter(plan.facts.nodes))}"
        if not layers:
            yield "  TensorRT listed no layers of the engine"
            continue
        yield f"  kernels   {_counts(Counter(layer.kind for layer in layers))}"
        yield f"  writes    {_counts(Counter(p for layer in layers for p in layer.precisions))}"
        yield from _fusions(layers)


def kept_layers(folder: Path, plan: BuiltPlan) -> tuple[Layer, ...]:
    """The layers of an engine, as they were listed when it was built."""
    listed = parse_json((folder / plan.layers.path).read_bytes())
    return read_typed(tuple[Layer, ...], listed, ValueError, whole=plan.layers.path)


def _fusions(layers: tuple[Layer, ...]) -> Iterator[str]:
    fused = [layer for layer in layers if len(layer.nodes) > 1]
    nodes = sum(len(layer.nodes) for layer in fused)
    yield f"  fusions   {nodes} nodes in {len(fused)} kernels; the largest:"
    for layer in sorted(fused, key=lambda one: -len(one.nodes))[:SHOWN_FUSIONS]:
        shown = ", ".join(layer.nodes[:4]) + (", ..." if len(layer.nodes) > 4 else "")
        yield f"    {len(layer.nodes):>3}  {layer.name}: {shown}"


def _tensors(plan: BuiltPlan) -> str:
    sides = [
        ", ".join(f"{one.name} {one.dtype} {'x'.join(map(str, one.shape))}" for one in side)
        for side in (plan.inputs, plan.outputs)
    ]
    return " -> ".join(sides)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name.lower()}" for name, count in counter.most_common())


def _mb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f} MB"


def _count(number: int | None) -> str:
    return "?" if number is None else str(number)
