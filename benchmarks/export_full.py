"""The export at full size: the architecture of Stable Diffusion 2.1-base, both stages, the autoencoder.

    python -m benchmarks.export_full [--precision fp16] [--keep DIR] [--json FILE]
    python -m benchmarks.export_full --graphs-alone --keep DIR

Weights are random: what is measured is the way through the exporter, not a picture. Prints the figures of
the gates, then seconds, peak resident memory, file sizes, nodes and casts; with the [rtx] extra also what
TensorRT for RTX makes of the graphs for an RTX 40 card (SM 8.9). Needs 14 GB of memory and 20 GB of disk.
Fails where a documented bound does not hold.

--graphs-alone makes a bundle to time with, by a part of the work: the same graphs without gates, and stage 2
over a copy of stage 1's UNet. It has no golden tile, so that no machine checks itself with it, and says an
overlap of 80 px, which nano was measured to be good with.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.full_size import scheduler, unet_and_vae
from tudsr_export.bundle_writer import DECODER, BundleFacts, list_component, write_bundle_files
from tudsr_export.command import run
from tudsr_export.export import sized
from tudsr_export.graphs import stage_graph, vae_graphs
from tudsr_export.merge import BASE_ENCODER, attach_stage, merge_adapter
from tudsr_export.options import ExportOptions
from tudsr_export.part import Graph, Part, widened, write_models
from tudsr_export.plan import ExportPlan
from tudsr_export.seams import LEAST_OVERLAP
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_train.adapters import TARGETS, add_adapter, record_of, save_adapter
from tudsr_train.generator import Generator

MOST_MEMORY = 14e9
"""Bytes of resident memory."""
MOST_UNET = 1.66e9
"""Bytes of the files of one half UNet."""
RANK = 32
SHAPES: dict[str, Callable[[int], Sequence[int]]] = {
    "image": lambda tile: (1, 3, tile, tile),
    **dict.fromkeys(("z_L", "z_H"), lambda tile: (1, 4, tile // 8, tile // 8)),
}
"""Of inputs and outputs, by the size of tiles in px."""


def make_base(folder: Path) -> None:
    """The architecture of Stable Diffusion 2.1-base, random, in diffusers' layout."""
    torch.manual_seed(0)
    unet, vae = unet_and_vae()
    unet.save_pretrained(folder / "unet")
    # Latents of about 1, as after training. Near 0 the decoder's norms would amplify every rounding.
    vae.quant_conv.weight.data *= 30
    vae.quant_conv.bias.data *= 30
    vae.save_pretrained(folder / "vae")
    scheduler().save_pretrained(folder / "scheduler")
    (folder / "prompt").mkdir()
    prompt = torch.randn(1, 77, unet.config.cross_attention_dim)
    save_file({"prompt_embeds": prompt}, folder / "prompt" / "prompt_embeds.safetensors")


def make_adapters(base: Path, folder: Path) -> list[Path]:
    """Two adapters of rank 32 that do something: B is not zero."""
    adapters = []
    for stage, timestep, factor in ((1, 200, 4), (2, 50, 2)):
        generator = Generator.load(base)
        add_adapter(generator, "x", RANK, TARGETS)
        for name, parameter in generator.unet.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.01)
        adapters.append(folder / f"stage{stage}")
        adapters[-1].mkdir()
        save_adapter(generator, "x", adapters[-1], record_of(generator, "x", stage, timestep, factor))
        del generator
    return adapters


def graphs(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Of every component's first graph: bytes of its files, nodes, casts, and the commonest operators."""
    found = {}
    for name in bundle.manifest.components:
        variant = bundle.variant(name)
        model = onnx.load(bundle.path(variant), load_external_data=False)
        operators = Counter(node.op_type for node in model.graph.node)
        found[name] = {
            "bytes": sum(file.bytes for file in variant.files),
            "nodes": len(model.graph.node),
            "casts": operators["Cast"],
            "operators": dict(operators.most_common(8)),
        }
    return found


def require(bundle: dict[str, dict[str, Any]], memory: float, precision: str) -> None:
    if memory > MOST_MEMORY:
        raise SystemExit(f"peak memory {memory / 1e9:.2f} GB is above {MOST_MEMORY / 1e9:.0f} GB")
    for name, facts in bundle.items():
        if precision == "fp16" and name.startswith("unet") and facts["bytes"] > MOST_UNET:
            raise SystemExit(f"{name} takes {facts['bytes'] / 1e9:.3f} GB, above {MOST_UNET / 1e9:.2f} GB")


def export(folder: Path, precision: str) -> dict[str, Any]:
    base = folder / "base"
    base.mkdir()
    make_base(base)
    stage1, stage2 = make_adapters(base, folder)
    started, used = time.monotonic(), time.process_time()
    run(ExportOptions(folder / "bundle", base, stage1, stage2, precision=precision, name="full"))
    seconds, processor = time.monotonic() - started, time.process_time() - used
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    bundle = open_bundle(folder / "bundle")
    return {
        "command": "python -m benchmarks.export_full --precision " + precision,
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "diffusers", "onnx", "onnxruntime")},
        "seconds": round(seconds),
        "processor_seconds": round(processor),
        "peak_memory_bytes": memory,
        "graphs": graphs(bundle),
        "numerics": bundle.manifest.numerics,
    }


def graphs_alone(folder: Path, precision: str) -> None:
    """Write `folder`/bundle as the exporter would, but with nothing computed and nothing compared."""
    base = folder / "base"
    base.mkdir()
    make_base(base)
    adapters = dict(enumerate(make_adapters(base, folder), 1))
    generator = Generator.load(base).eval()
    output = folder / "bundle"
    about = "Random weights, not compared with anything: for timing."
    plan = ExportPlan(
        base=base,
        adapters=adapters,
        output=output,
        precision=precision,
        name="full-untested",
        licence="unspecified",
        about=about,
        tiles=None,
    )
    plan = sized(plan, generator)
    output.mkdir()
    stages, graphs = [], {}
    for number, adapter in adapters.items():
        attached, settings = attach_stage(generator, adapter, number)
        stages.append(settings)
        if number == 1:
            merge_adapter(attached.unet)
            sides = [shape.tile // 8 for shape in plan.shapes]
            module = stage_graph(attached, settings.timestep, settings.formula, sides)
            unet = Part(settings.unet, module, ("z_L", "z_H"), precision)
        del attached
    generator.unet = nn.Identity()
    graphs[stages[0].unet] = untested(unet, output, plan)
    shutil.copytree(output / stages[0].unet, output / stages[1].unet)
    graphs[stages[1].unet] = graphs[stages[0].unet]
    encoder, decoder = vae_graphs(generator.vae)
    for name, module, ports in (
        (BASE_ENCODER, encoder, ("image", "z_L")),
        (DECODER, decoder, ("z_H", "image")),
    ):
        graphs[name] = untested(Part(name, module.eval(), ports, precision), output, plan)
    components = {name: list_component(output / name, listed) for name, listed in sorted(graphs.items())}
    facts = BundleFacts(plan, generator, tuple(stages), components, None, {}, overlap=LEAST_OVERLAP)
    write_bundle_files(output, facts, {})


def untested(part: Part, folder: Path, plan: ExportPlan) -> list[Graph]:
    """The graphs of a part for every size of tiles of the plan, each in half followed by the float32 one."""
    ports = {
        shape: part.ports_of(*(SHAPES[port](shape.tile) for port in part.ports)) for shape in plan.shapes
    }
    models = write_models(part, folder / part.name, ports).values()
    if part.precision == "fp32":
        return [*models]
    return [graph for model in models for graph in (model, widened(folder / part.name, model))]


def show(result: dict[str, Any]) -> None:
    lines = [f"{result['seconds']} s, of the processor {result['processor_seconds']} s"]
    lines.append(f"peak resident memory {result['peak_memory_bytes'] / 1e9:.2f} GB")
    for name, facts in result["graphs"].items():
        megabytes = facts["bytes"] / 1e6
        lines.append(f"{name:<14}{megabytes:9.1f} MB{facts['nodes']:7} nodes{facts['casts']:5} casts")
    for name, facts in result["numerics"]["tensorrt_rtx"].items():
        if isinstance(facts, dict):
            lines.append(
                f"{name:<14}{facts['value']:9.1f} MB of activations, {facts['fused_attention']} kernels of "
                f"fused attention, {facts['casts']} casts, plan {facts['plan_bytes'] / 1e6:.1f} MB"
            )
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--precision", choices=("fp16", "fp32"), default="fp16")
    parser.add_argument("--keep", type=Path, help="work in this new folder, and leave the bundle there")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--graphs-alone", action="store_true", help="a bundle to time with: no gates")
    options = parser.parse_args()
    if options.graphs_alone:
        if options.keep is None or options.json is not None:
            parser.error("--graphs-alone needs --keep, and has no result for --json")
        options.keep.mkdir(parents=True)
        graphs_alone(options.keep, options.precision)
        sys.stdout.write(f"{options.keep / 'bundle'}\n")
        return
    if options.keep:
        options.keep.mkdir(parents=True)
        result = export(options.keep, options.precision)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = export(Path(folder), options.precision)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    require(result["graphs"], result["peak_memory_bytes"], options.precision)


if __name__ == "__main__":
    main()
