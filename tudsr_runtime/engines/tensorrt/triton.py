"""A model repository for Triton Inference Server, for those who serve at scale.

    REPOSITORY/nano_vae_encoder/config.pbtxt, 1/model.onnx      one model for each component
    REPOSITORY/nano_stage1/config.pbtxt, 1/                     the three of a stage in one: x_L -> x_H
    REPOSITORY/nano_unet_stage1_tensorrt/..., 1/sm89.plan       the same from TensorRT's engines, if given
    REPOSITORY/nano_unet_stage1-256, nano_stage1-256            the same for another size of tiles
    REPOSITORY/nano_stage1_light                                the same with the bundle's light decoder

An ensemble takes one tile, already upsampled, (1, 3, T, T) in [-1, 1], and gives the restored one; a network
takes it as it is. Cutting into tiles and blending them stays with the client. Latents never leave the server.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

from tudsr_runtime.atomic import atomic_dir
from tudsr_runtime.bundle import DECODERS, Bundle
from tudsr_runtime.engines.tensorrt.record import (
    EngineRecord,
    engine_name,
    engine_variants,
    read_plan,
    read_record,
)
from tudsr_runtime.errors import DeviceError, UsageError
from tudsr_runtime.files import link_or_copy
from tudsr_runtime.manifest import TensorSpec, Variant

DATA_TYPES = {"float16": "TYPE_FP16", "float32": "TYPE_FP32"}
VERSION = "1"
NATIVE = "tensorrt"
"""The library whose engines Triton's TensorRT back end loads."""
SUFFIX = "_tensorrt"


def write_repository(bundle: Bundle, folder: Path, engines: Sequence[Path] = ()) -> list[str]:
    """Write the model repository `folder`, whole or not at all; the names of its models.

    Args:
        bundle: the bundle; its own precision, all its sizes of tiles.
        folder: must not exist.
        engines: folders of engines of TensorRT, one for each kind of GPU that serves. They must have those of
            the bundle's own size of tiles; of the others, those are served that all folders have.

    Raises:
        UsageError: engines of TensorRT for RTX, which Triton does not load, or two for one kind of GPU.
        DeviceError: engines that are missing, damaged, or not of this bundle.
        OutputError: `folder` exists or cannot be written.
    """
    records = _read_records(bundle, engines)
    with atomic_dir(folder) as partial:
        placed: dict[str, Path] = {}
        for tile in bundle.tiles:
            _write_size(partial, bundle, tile, records, placed)
        names = sorted(one.name for one in partial.iterdir())
    return names


def _write_size(
    repository: Path,
    bundle: Bundle,
    tile: int,
    records: Mapping[str, tuple[Path, EngineRecord]],
    placed: dict[str, Path],
) -> None:
    """All models for tiles of one size."""
    variants = {component: bundle.variant(component, tile=tile) for component in bundle.manifest.components}
    built = all(v.model in record.plans for v in variants.values() for _, record in records.values())
    suffixes = ("", SUFFIX) if records and built else ("",)
    for component, variant in variants.items():
        _write_onnx(repository, _name(bundle, component, tile), bundle, variant, placed)
        if SUFFIX in suffixes:
            _write_plans(repository, _name(bundle, component, tile) + SUFFIX, variant, records)
    for number, stage in enumerate(bundle.manifest.stages):
        for suffix, decoder in product(suffixes, bundle.decoders):
            light = "" if decoder == DECODERS[0] else f"_{decoder}"
            name = _name(bundle, stage.name, tile) + light + suffix
            _write_ensemble(repository, name, bundle.with_decoder(decoder), number, tile, suffix)


def _name(bundle: Bundle, part: str, tile: int) -> str:
    return f"{bundle.manifest.name}_{engine_name(bundle, part, tile)}"


def _read_records(bundle: Bundle, folders: Sequence[Path]) -> dict[str, tuple[Path, EngineRecord]]:
    """The engines by compute capability, all of them TensorRT's, of this bundle, and of one version."""
    found: dict[str, tuple[Path, EngineRecord]] = {}
    for folder in folders:
        record = read_record(folder)
        if record.library != NATIVE:
            raise UsageError(
                f"the engines in {folder} are of {record.library}; Triton loads those of TensorRT itself",
                hint="leave --engines out: Triton runs the ONNX graphs too",
            )
        if record.capability in found:
            other = found[record.capability][0]
            raise UsageError(
                f"{folder} and {other} are both for {record.capability}; Triton tells no more of a card"
            )
        for variant in engine_variants(bundle).values():
            plan = record.plans.get(variant.model)
            needed = variant.tile == bundle.manifest.tile
            if (plan is None and needed) or (plan is not None and plan.graph != variant.files):
                raise DeviceError(f"the engines in {folder} are not of this bundle's {variant.model}")
        found[record.capability] = (folder, record)
    return found


def _write_onnx(
    repository: Path, name: str, bundle: Bundle, variant: Variant, placed: dict[str, Path]
) -> None:
    """One model; `placed` are the bundle's files that are in the repository already, by their path."""
    version = _make(repository, name)
    for file in variant.files:
        # External weights are found by the name that they have beside the graph.
        target = version / Path(file.path).name
        if file.path in placed:
            link_or_copy(placed[file.path], target)
        else:
            shutil.copyfile(bundle.folder / file.path, target)
            placed[file.path] = target
    lines = [
        'backend: "onnxruntime"',
        f"default_model_filename: {_text(Path(variant.model).name)}",
        *_tensors(variant.inputs, variant.outputs),
    ]
    _configure(repository, name, lines)


def _write_plans(
    repository: Path, name: str, variant: Variant, records: Mapping[str, tuple[Path, EngineRecord]]
) -> None:
    version = _make(repository, name)
    lines = ['platform: "tensorrt_plan"', *_tensors(variant.inputs, variant.outputs)]
    for target, (folder, record) in records.items():
        plan = record.plans[variant.model]
        (version / f"{target}.plan").write_bytes(read_plan(folder, plan))
        capability = f"{target[2:-1]}.{target[-1]}"
        lines.append(_message("cc_model_filenames", f'key: "{capability}"', f'value: "{target}.plan"'))
    first = next(iter(records))
    _configure(repository, name, [*lines, f'default_model_filename: "{first}.plan"'])


def _write_ensemble(repository: Path, name: str, bundle: Bundle, stage: int, tile: int, suffix: str) -> None:
    _make(repository, name)
    components = bundle.parts(stage)
    passed = ("x_L", "x_H") if len(components) == 1 else ("x_L", "z_L", "z_H", "x_H")
    variants = [bundle.variant(component, tile=tile) for component in components]
    ends = [TensorSpec(passed[0], variants[0].inputs[0].dtype, variants[0].inputs[0].shape)]
    ends.append(TensorSpec(passed[-1], variants[-1].outputs[0].dtype, variants[-1].outputs[0].shape))
    steps = []
    for i, component in enumerate(components):
        source, target = variants[i].inputs[0].name, variants[i].outputs[0].name
        steps.append(
            _message(
                "step",
                f"model_name: {_text(_name(bundle, component, tile) + suffix)}",
                "model_version: -1",
                _message("input_map", f"key: {_text(source)}", f"value: {_text(passed[i])}"),
                _message("output_map", f"key: {_text(target)}", f"value: {_text(passed[i + 1])}"),
            )
        )
    lines = ['platform: "ensemble"', *_tensors(ends[:1], ends[1:]), _message("ensemble_scheduling", *steps)]
    _configure(repository, name, lines)


def _make(repository: Path, name: str) -> Path:
    """The folder of the model's one version; an ensemble's stays empty."""
    version = repository / name / VERSION
    version.mkdir(parents=True)
    return version


def _configure(repository: Path, name: str, lines: Iterable[str]) -> None:
    # 0: the batch is part of the shape, as the graphs have it.
    text = "\n".join([f"name: {_text(name)}", "max_batch_size: 0", *lines])
    (repository / name / "config.pbtxt").write_text(text + "\n", encoding="utf-8")


def _tensors(inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> list[str]:
    return [
        _message(
            side,
            f"name: {_text(spec.name)}",
            f"data_type: {DATA_TYPES[spec.dtype]}",
            f"dims: [{', '.join(map(str, spec.shape))}]",
        )
        for side, specs in (("input", inputs), ("output", outputs))
        for spec in specs
    ]


def _message(name: str, *fields: str) -> str:
    """A nested message of protobuf's text format."""
    inside = "\n".join(fields).replace("\n", "\n  ")
    return f"{name} {{\n  {inside}\n}}"


def _text(value: str) -> str:
    """A string of protobuf's text format; of names in a bundle, JSON's quoting is the same."""
    return json.dumps(value)
