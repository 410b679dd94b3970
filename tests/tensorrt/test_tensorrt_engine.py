"""The TensorRT back ends on stand-ins for both libraries and for CUDA (tests/tensorrt/fakes.py).

What this shows: the order of work, the addresses, what is refused, and that everything is freed. What it
cannot show: that a GPU computes the same, and how fast.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cli
from tests.runtime.conftest import add_golden
from tests.tensorrt.conftest import Machine
from tests.tensorrt.fakes import NO_MEMORY_FOR_CONTEXT, FakeTensorRT
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.engines import choose as chooser
from tudsr_runtime.engines.backend import Choice, Engine, Precision, Target
from tudsr_runtime.engines.choose import Asked, choose
from tudsr_runtime.engines.select import BACKENDS, BUILT, PREFERENCE, select
from tudsr_runtime.engines.stages import LoadedEngines
from tudsr_runtime.engines.tensorrt.backend import _Runtime
from tudsr_runtime.engines.tensorrt.cuda_chain import SLOTS
from tudsr_runtime.engines.tensorrt.library import Library, choose_target
from tudsr_runtime.engines.tensorrt.record import RECORD_NAME, engine_folder
from tudsr_runtime.engines.tensorrt.store import Wanted, ensure_engines
from tudsr_runtime.errors import BundleError, DeviceError, MemoryExhausted, NotFiniteError, UsageError
from tudsr_runtime.golden_tile import Figure
from tudsr_runtime.manifest import BundleFile, Golden, Variant
from tudsr_runtime.terminal import Terminal
from tudsr_runtime.upscaler import Upscaler

MakeBundle = Callable[..., Path]
CUDA = Target("cuda", "fp16")


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path) -> Bundle:
    return open_bundle(make_bundle(tmp_path / "bundle", unet="offset", dtype="float16", tile=64))


@pytest.fixture
def engines(machine: Machine, bundle: Bundle) -> Path:
    """The engines of the bundle, in the cache, for the machine's GPU; nothing has been asked of it since."""
    path = ensure_engines(Wanted(bundle, machine.library, machine.target)).path
    machine.trt._usage.names.clear()
    return path


def choice(machine: Machine) -> Choice:
    return Choice(machine.name, "cuda", "for the test")


def load(machine: Machine, bundle: Bundle, target: Target = CUDA, component: str = "unet_stage1") -> Engine:
    variant = bundle.variant(component)
    return machine.backend.load(bundle.path(variant), variant, target)


def tile(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((1, 3, 64, 64), dtype=np.float32) * 2 - 1


@pytest.mark.usefixtures("engines")
def test_a_stage_runs_as_one_graph(machine: Machine, bundle: Bundle) -> None:
    stage = LoadedEngines(bundle, choice(machine)).stage(0)
    y = stage.run(tile())
    assert (y.dtype, y.shape) == (np.float32, (1, 3, 64, 64))
    assert np.abs(y - (tile() + 0.25)).max() <= 2e-3
    assert machine.cuda.launches == 1
    assert stage.parallel == SLOTS
    for engine in stage.engines:
        engine.close()
        engine.close()


@pytest.mark.usefixtures("engines")
def test_engines_that_are_dropped_free_what_they_held(machine: Machine, bundle: Bundle) -> None:
    loaded = LoadedEngines(bundle, choice(machine))
    stage = loaded.stage(0)
    stage.run(tile())
    assert not loaded.give_way(tile=64)
    assert np.abs(stage.run(tile()) - (tile() + 0.25)).max() <= 2e-3
    del stage
    assert machine.cuda.live() == 0


@pytest.mark.usefixtures("engines")
def test_only_the_ends_of_a_stage_travel_to_and_from_the_host(machine: Machine, bundle: Bundle) -> None:
    with LoadedEngines(bundle, choice(machine)) as loaded:
        stage = loaded.stage(0)
        machine.cuda._usage.calls.clear()
        stage.run(tile())
    copies = [call for call in machine.cuda._usage.calls if call[0] == "cudaMemcpyAsync"]
    assert [call[1][3] for call in copies] == ["up", "down"]
    assert {call[1][2] for call in copies} == {3 * 64 * 64 * 2}
    assert len({call[1][4] for call in copies}) == 2, "one stream up, another one down"


@pytest.mark.usefixtures("engines")
def test_many_threads_get_their_own_results(machine: Machine, bundle: Bundle) -> None:
    with LoadedEngines(bundle, choice(machine)) as loaded, ThreadPoolExecutor(6) as pool:
        stages = [loaded.stage(index) for index in range(2)]
        found = list(pool.map(lambda i: stages[i % 2].run(tile(i)), range(24)))
    for i, y in enumerate(found):
        assert np.abs(y - (tile(i) + 0.25)).max() <= 2e-3


@pytest.mark.usefixtures("engines")
def test_a_picture_goes_through_both_stages(machine: Machine, bundle: Bundle) -> None:
    picture = np.full((9, 8, 3), 0.25, np.float32)
    with Upscaler(bundle, machine.name, color="none", overlap=24) as upscaler:
        assert (upscaler.choice.backend, upscaler.choice.device) == (machine.name, "cuda")
        large = upscaler.upscale(picture, scale=8)
        assert large.shape == (72, 64, 3)
        assert np.abs(large - 0.5).max() <= 2e-3  # 0.25 in [-1, 1] per stage is 0.125 in [0, 1].
        half = Upscaler(bundle, machine.name, color="none", overlap=24, strength=(1.0, 0.0))
        assert np.abs(half.upscale(picture, scale=8) - 0.375).max() <= 2e-3
        half.close()


@pytest.mark.usefixtures("engines")
def test_a_graph_that_cannot_be_captured_runs_without_and_says_so(
    machine: Machine, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    machine.trt.refuses = {"capture"}
    engine = load(machine, bundle)
    with caplog.at_level(logging.WARNING, "tudsr"):
        z = np.zeros((1, 48, 16, 16), np.float32)
        assert np.abs(engine.run(z) - 0.25).max() <= 1e-3
    assert machine.cuda.launches == 0
    assert "no CUDA graph of unet_stage1" in caplog.text
    engine.close()


def test_the_folder_of_engines_may_be_named(machine: Machine, bundle: Bundle, tmp_path: Path) -> None:
    named = ensure_engines(Wanted(bundle, machine.library, machine.target), tmp_path / "mine").path
    with Upscaler(bundle, engines=named, color="none", overlap=24) as upscaler:
        assert upscaler.choice.backend == machine.name
        large = upscaler.upscale(np.full((8, 8, 3), 0.25, np.float32), scale=4)
    assert np.abs(large - 0.5).max() <= 2e-3
    with pytest.raises(UsageError, match=f"are of {machine.name}, not of onnxruntime"):
        Upscaler(bundle, "onnxruntime", engines=named, overlap=24)
    with pytest.raises(DeviceError, match=r"holds no engines: it has no engine\.json"):
        Upscaler(bundle, engines=tmp_path, overlap=24)


def test_engines_that_were_not_built_are_an_error_with_the_command(machine: Machine, bundle: Bundle) -> None:
    with pytest.raises(DeviceError, match=rf"there are no engines in .*-{machine.target}$") as caught:
        load(machine, bundle)
    assert caught.value.exit_code == 6
    assert caught.value.hint == f"tudsr build {bundle.folder} --engine {machine.name} --precision fp16"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("version", "1.0.0", "they were built for the library's version 1.0.0, this is "),
        ("target", "sm86", "they were built for the target sm86, this is "),
        ("platform", "plan9_vax", "they were built for the platform plan9_vax, this is "),
        ("library", "tvm", "they were built for the library tvm, this is "),
    ],
)
def test_a_record_that_does_not_fit_is_refused_before_anything_is_loaded(
    machine: Machine, bundle: Bundle, engines: Path, key: str, value: str, reason: str
) -> None:
    machine.trt.refuses = {"deserialize"}
    rewrite(engines, lambda record: record.update({key: value}))
    with pytest.raises(DeviceError, match=reason):
        load(machine, bundle)
    assert "Runtime.deserialize_cuda_engine" not in machine.trt._usage.names


def test_an_engine_that_was_changed_is_never_loaded(machine: Machine, bundle: Bundle, engines: Path) -> None:
    plan = engines / "unet_stage1.plan"
    plan.write_bytes(plan.read_bytes()[:-1] + b"!")
    with pytest.raises(DeviceError, match="is not the engine that was built: sha256"):
        load(machine, bundle)
    plan.rename(engines / "elsewhere")
    plan.symlink_to(engines / "elsewhere")
    with pytest.raises(DeviceError, match="is a link; an engine must be a plain file"):
        load(machine, bundle)
    assert "Runtime.deserialize_cuda_engine" not in machine.trt._usage.names


def test_an_engine_of_another_graph_is_refused(
    machine: Machine, bundle: Bundle, engines: Path, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    other = open_bundle(make_bundle(tmp_path / "other", unet="identity", dtype="float16", tile=64))
    with pytest.raises(DeviceError, match=r"the graph unet_stage1/model\.onnx has changed"):
        load(machine, other, dataclasses.replace(CUDA, engines=engines))
    assert load(machine, bundle, dataclasses.replace(CUDA, engines=engines)).close() is None


def test_a_record_that_names_another_folder_is_damaged(
    machine: Machine, bundle: Bundle, engines: Path
) -> None:
    def reach_out(record: dict) -> None:
        record["plans"]["unet_stage1/model.onnx"]["file"]["path"] = "../unet_stage1.plan"

    rewrite(engines, reach_out)
    with pytest.raises(DeviceError, match=r"engine\.json is damaged"):
        load(machine, bundle)


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize("step", ["deserialize", "address", "execute", "context"])
def test_what_tensorrt_refuses_is_an_error_that_frees_everything(
    machine: Machine, bundle: Bundle, step: str
) -> None:
    def load_and_run() -> None:
        engine = load(machine, bundle)
        try:
            engine.run(np.zeros((1, 48, 16, 16), np.float32))
        finally:
            engine.close()

    machine.trt.refuses = {step}
    with pytest.raises(DeviceError, match="unet_stage1") as caught:
        load_and_run()
    assert caught.value.exit_code == 6


@pytest.mark.usefixtures("engines")
def test_a_gpu_that_is_full_is_out_of_memory(machine: Machine, bundle: Bundle) -> None:
    machine.cuda._left = 1000
    engine = load(machine, bundle)
    with pytest.raises(MemoryExhausted, match="the GPU is out of memory") as caught:
        engine.run(np.zeros((1, 48, 16, 16), np.float32))
    assert caught.value.exit_code == 7
    engine.close()


@pytest.mark.usefixtures("engines")
def test_memory_is_short_whichever_line_of_the_log_says_so(machine: Machine, bundle: Bundle) -> None:
    z = np.zeros((1, 48, 16, 16), np.float32)
    for step, lines in (
        ("context", NO_MEMORY_FOR_CONTEXT),
        ("context", NO_MEMORY_FOR_CONTEXT[:2]),
        (
            "execute",
            (*NO_MEMORY_FOR_CONTEXT[1:2], ("[E]", "Error Code 1: Cask (Cask convolution execution)")),
        ),
    ):
        machine.trt.refuses, machine.trt.says = {step}, {step: lines}
        engine = load(machine, bundle)
        with pytest.raises(MemoryExhausted, match=r"out of memory while .* unet_stage1 with TensorRT: "):
            engine.run(z)
        machine.trt.says = {}
        with pytest.raises(DeviceError, match="unet_stage1"):
            engine.run(z)
        engine.close()
    machine.trt.refuses, machine.trt.says = {"deserialize"}, {"deserialize": NO_MEMORY_FOR_CONTEXT}
    with pytest.raises(MemoryExhausted, match=r"OutOfMemory|could not be allocated"):
        load(machine, bundle)


@pytest.mark.usefixtures("engines")
def test_a_collected_engine_waits_for_the_end_of_a_capture(machine: Machine, bundle: Bundle) -> None:
    """Python may collect in the middle of any work: here, while a graph of another engine is captured."""
    with LoadedEngines(bundle, choice(machine)) as loaded:
        loaded.stage(0).run(tile())
        kept, held = machine.cuda.live(), [load(machine, bundle, component="vae_decoder")]
        held[0].run(np.zeros((1, 48, 16, 16), np.float32))
        machine.trt.meanwhile = held.clear
        launches = machine.cuda.launches
        loaded.stage(1).run(tile())
        assert machine.cuda.launches == launches + 1, "the capture was spoiled"
        machine.trt.meanwhile = lambda: None
        assert not held
        twice = machine.cuda.live()
        loaded.stage(0).run(tile())
        assert machine.cuda.live() == twice
        assert twice - kept <= kept, "what the collected engine held is freed"


@pytest.mark.usefixtures("engines")
def test_the_last_engine_may_be_collected_while_the_next_one_is_loaded(
    machine: Machine, bundle: Bundle
) -> None:
    held = [load(machine, bundle)]
    with machine.backend.lock:
        held.clear()
        runtime = machine.backend._acquire(0)
    assert runtime.users == 1
    machine.backend.give_back(runtime)


@pytest.mark.usefixtures("engines")
def test_another_shape_is_refused(machine: Machine, bundle: Bundle) -> None:
    engine = load(machine, bundle)
    with pytest.raises(DeviceError, match=r"unet_stage1 takes \(1, 48, 16, 16\), not \(1, 48, 8, 8\)"):
        engine.run(np.zeros((1, 48, 8, 8), np.float32))
    engine.close()


def test_an_engine_with_other_tensors_than_the_manifest_is_refused(
    machine: Machine, bundle: Bundle, engines: Path
) -> None:
    def swap(record: dict) -> None:
        plans = record["plans"]
        decoder, encoder = plans["vae_decoder/model.onnx"], plans["vae_encoder/model.onnx"]
        decoder["file"], encoder["file"] = encoder["file"], decoder["file"]

    rewrite(engines, swap)
    with pytest.raises(BundleError, match=r"the engine of vae_encoder: its input is .* the manifest says"):
        load(machine, bundle, component="vae_encoder")


@pytest.mark.parametrize("machine", ["tensorrt-rtx"], indirect=True)
@pytest.mark.usefixtures("engines")
def test_rtx_says_why_an_engine_is_not_valid_here(machine: Machine, bundle: Bundle) -> None:
    machine.trt.refuses = {"validity"}
    with pytest.raises(DeviceError, match=r"Fake GPU cannot run .* version mismatch, unsupported cc"):
        load(machine, bundle)
    machine.trt.invalid = int(machine.trt.EngineInvalidityDiagnostics.INSUFFICIENT_GPU_MEMORY)
    with pytest.raises(MemoryExhausted, match=r"loading unet_stage1 on Fake GPU .* insufficient gpu memory"):
        load(machine, bundle)


@pytest.mark.parametrize("machine", ["tensorrt-rtx"], indirect=True)
@pytest.mark.usefixtures("engines")
def test_kernels_that_rtx_compiled_are_kept_and_checked(
    machine: Machine, bundle: Bundle, cache: Path
) -> None:
    def once() -> None:
        engine = load(machine, bundle)
        engine.run(np.zeros((1, 48, 16, 16), np.float32))
        engine.close()

    once()
    (kept,) = (cache / "kernels").glob("*")
    assert kept.name == "tensorrt-rtx-1.7.1.116-sm89-fake-gpu-24gib.cache"
    assert kept.read_bytes()[32:] == b"compiled"
    machine.trt._usage.names.clear()
    once()
    assert "IRuntimeCache.deserialize" in machine.trt._usage.names
    kept.write_bytes(kept.read_bytes() + b"more")
    machine.trt._usage.names.clear()
    once()
    assert "IRuntimeCache.deserialize" not in machine.trt._usage.names
    machine.trt.refuses = {"cache"}
    once()


def test_auto_takes_engines_where_they_are_built_and_says_why_it_does_not(
    machine: Machine, bundle: Bundle
) -> None:
    def auto() -> Choice:
        return choose(bundle, Asked())[0]

    assert auto().backend not in BUILT
    assert f"no engines for {machine.name} are built" in auto().reason
    assert not machine.trt._usage.calls, "nothing is opened to find that out"
    folder = ensure_engines(Wanted(bundle, machine.library, machine.target)).path
    assert (auto().backend, auto().device) == (machine.name, "cuda")
    with Upscaler(bundle, overlap=24, color="none") as upscaler:
        assert np.abs(upscaler.upscale(np.full((8, 8, 3), 0.25, np.float32), 4) - 0.5).max() <= 2e-3
    rewrite(folder, lambda record: record.update(version="1.0.0"))
    assert auto().backend not in BUILT
    assert f"the engines for {machine.name} do not serve: they were built for the library's" in auto().reason
    machine.cuda._count = 0
    assert "cudaErrorNoDevice" in auto().reason


@pytest.mark.parametrize("machine", ["tensorrt-rtx"], indirect=True)
def test_auto_prefers_rtx_then_tensorrt_then_onnx_runtime_s_providers(
    machine: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = FakeTensorRT(machine.cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", native)
    for library in (machine.library, Library("tensorrt", native)):
        ensure_engines(Wanted(bundle, library, choose_target(library, None)[0]))
    providers = SimpleNamespace(probe=lambda _: None, precision=lambda *_: Precision("fp16", "the bundle's"))
    monkeypatch.setitem(sys.modules, "providers", SimpleNamespace(BACKEND=providers))
    for name in ("onnxruntime", "onnxruntime-rtx"):
        monkeypatch.setitem(BACKENDS, name, "providers:BACKEND")
    found = []
    for gone in ("", "tensorrt_rtx", "tensorrt"):
        if gone:
            monkeypatch.setitem(sys.modules, gone, None)
        found.append(choose(bundle, Asked())[0])
    assert [one.backend for one in found] == ["tensorrt-rtx", "tensorrt", "onnxruntime-rtx"]
    assert found[0].reason == "the fastest available"
    assert "tensorrt-rtx cannot be imported" in found[1].reason
    assert "tensorrt cannot be imported" in found[2].reason
    assert [pair for pair in PREFERENCE if pair[1] == "cuda"][-1] == ("onnxruntime", "cuda")


def test_engines_that_the_golden_tile_fails_are_passed_over(
    machine: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = Golden(BundleFile("golden/input.png", "0" * 64, 1), ())
    proven = dataclasses.replace(bundle, manifest=bundle.manifest)
    object.__setattr__(proven, "manifest", SimpleNamespace(**{**vars(bundle.manifest), "golden": golden}))
    ensure_engines(Wanted(bundle, machine.library, machine.target))
    ran: list[str] = []

    def run(_bundle: object, choice: Choice, *_: object) -> list[Figure]:
        ran.append(choice.backend)
        return [Figure("stage1", 21.0 if choice.backend in BUILT else 60.0, 0.2)]

    monkeypatch.setattr(chooser, "run_golden", run)
    found = choose(proven, Asked())[0]
    assert ran[0] == machine.name
    assert found.backend not in BUILT
    assert f"fp16 with {machine.name} on cuda is at 21.0 dB on the golden tile, below 40" in found.reason
    assert choose(proven, Asked(machine.name))[0].backend == machine.name, "what is named is taken"


def test_there_is_never_a_quiet_fallback(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"(runs on NVIDIA GPUs only|does not run on cpu)"):
        select(machine.name, "cpu")
    monkeypatch.setattr(machine.cuda, "_count", 0)
    with pytest.raises(DeviceError, match=f"{machine.name} has no GPU: cudaErrorNoDevice") as caught:
        select(machine.name)
    assert caught.value.exit_code == 6
    monkeypatch.setattr(machine.cuda, "_count", 1)
    with pytest.raises(DeviceError, match="there are 1 CUDA devices"):
        select(machine.name, "cuda:1")


@pytest.mark.parametrize("machine", ["tensorrt-rtx"], indirect=True)
def test_rtx_names_a_gpu_that_it_does_not_run_on(machine: Machine) -> None:
    machine.cuda._target = (9, 0)
    with pytest.raises(DeviceError, match=r"does not run on Fake GPU \(sm90\)") as caught:
        select("tensorrt-rtx")
    assert caught.value.hint == "--backend tensorrt"


def test_the_second_gpu_is_used_where_it_is_named(machine: Machine, bundle: Bundle, engines: Path) -> None:
    assert engines.is_dir()
    machine.cuda._count = 2
    engine = load(machine, bundle, dataclasses.replace(CUDA, device="cuda:1"))
    engine.run(np.zeros((1, 48, 16, 16), np.float32))
    assert {call[1] for call in machine.cuda._usage.calls if call[0] == "cudaSetDevice"} == {(1,)}
    engine.close()


@pytest.mark.parametrize("card", [(b"Fake GPU Laptop\0", 24 << 30), (b"Fake GPU\0", 16 << 30)])
def test_engines_that_were_timed_on_one_card_are_not_those_of_another(
    machine: Machine, bundle: Bundle, engines: Path, card: tuple[bytes, int]
) -> None:
    """Of one compute capability both; TensorRT for RTX builds for that, TensorRT itself for the card."""
    named = dataclasses.replace(CUDA, engines=engines)
    load(machine, bundle, named).close()
    machine.cuda._card = card
    if machine.name == "tensorrt-rtx":
        load(machine, bundle).close()
        return
    with pytest.raises(DeviceError, match=r"there are no engines in .*-sm89-fake-gpu-(laptop-24|16)gib$"):
        load(machine, bundle)
    with pytest.raises(
        DeviceError, match=r"built for the target sm89-fake-gpu-24gib, this is sm89-fake-gpu-"
    ):
        load(machine, bundle, named)


@pytest.mark.usefixtures("engines")
def test_engines_on_different_gpus_are_no_chain(machine: Machine, bundle: Bundle) -> None:
    machine.cuda._count = 2
    here = load(machine, bundle)
    there = load(machine, bundle, dataclasses.replace(CUDA, device="cuda:1"))
    assert machine.backend.chain([here, there]) is None
    assert machine.backend.chain([here, here]) is not None
    for engine in (here, there):
        engine.close()


@pytest.mark.usefixtures("engines")
def test_while_one_tile_is_computed_the_next_one_is_submitted(machine: Machine, bundle: Bundle) -> None:
    """Two calls are on the streams before either is waited for."""
    engine = load(machine, bundle)
    z = np.zeros((1, 48, 16, 16), np.float32)
    engine.run(z)
    both = threading.Barrier(2, timeout=300)
    wait = machine.cuda.cudaEventSynchronize

    def meet(event: object) -> object:
        both.wait()
        return wait(event)

    machine.cuda.__dict__["cudaEventSynchronize"] = meet
    machine.cuda._lock = threading.Semaphore(4)  # The stand-in's own lock must not order the threads.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(engine.run, [z, z]))
    del machine.cuda.__dict__["cudaEventSynchronize"]
    engine.close()


def test_the_command_builds_what_is_missing_and_says_so(
    machine: Machine, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((8, 8, 3), 64, np.uint8)).save(tmp_path / "a.png")
    line = ["upscale", str(tmp_path / "a.png"), "--bundle", str(bundle.folder), "--backend", machine.name]
    line += ["--scale", "4", "--overlap", "24", "--color", "none", "--overwrite", "-v"]
    for note in ("engines built in", "built before, and nothing has changed"):
        cli.app(line, standalone_mode=False)
        shown = capsys.readouterr().err
        assert f"back end: {machine.name} on cuda" in shown
        assert note in shown
    with Image.open(tmp_path / "a_x4.png") as large:
        assert large.size == (32, 32)
        # Two stages, each of which adds 0.25 in [-1, 1].
        assert np.abs(np.asarray(large) - (64 + 255 / 4)).max() <= 1


@pytest.mark.usefixtures("engines")
def test_what_is_loaded_is_hashed_once_and_nothing_else_is(
    machine: Machine, bundle: Bundle, tmp_path: Path, hashed: Counter[str]
) -> None:
    """At full size each pass over bundle or engines takes seconds before the first picture."""
    Image.fromarray(np.full((8, 8, 3), 64, np.uint8)).save(tmp_path / "a.png")
    line = ["upscale", str(tmp_path / "a.png"), "--bundle", str(bundle.folder), "--backend", machine.name]
    cli.app([*line, "--overlap", "24", "--color", "none"], standalone_mode=False)
    models = {name: count for name, count in hashed.items() if name.endswith((".plan", ".onnx"))}
    assert models == {f"{name}.plan": 1 for name in bundle.manifest.components}


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was hashed, by its name."""
    counts: Counter[str] = Counter()
    whole, digest, read = hashlib.sha256, hashlib.file_digest, Path.read_bytes
    names: dict[int, str] = {}

    def reading(path: Path) -> bytes:
        data = read(path)
        names[id(data)] = path.name
        return data

    def counting(data: bytes = b"", **more: Any) -> Any:
        counts[names.get(id(data), "")] += 1
        return whole(data, **more)

    def digesting(file: Any, name: str) -> Any:
        counts[Path(file.name).name] += 1
        return digest(file, name)

    monkeypatch.setattr(Path, "read_bytes", reading)
    monkeypatch.setattr(hashlib, "sha256", counting)
    monkeypatch.setattr(hashlib, "file_digest", digesting)
    return counts


def test_bench_takes_engines_from_a_folder_and_builds_them_else(
    machine: Machine, make_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = open_bundle(
        make_bundle(tmp_path / "large", unet="offset", dtype="float16", tile=256, smaller=(64,))
    )
    line = ["bench", "latency", "--bundle", str(bundle.folder), "--size", "16", "--scale", "2"]
    line += ["--warmup", "0", "--repeats", "1", "--json"]
    named = ensure_engines(Wanted(bundle, machine.library, machine.target), tmp_path / "mine").path
    cli.app([*line, "--engines", str(named)], standalone_mode=False)
    shown = capsys.readouterr()
    assert f"{machine.name} on cuda" in json.loads(shown.out)["facts"]["back end"]
    assert not engine_folder(bundle, machine.library, machine.target).exists()
    cli.app([*line, "--backend", machine.name], standalone_mode=False)
    shown = capsys.readouterr()
    assert "engine 4 of 4" in shown.err, "and none for tiles that are not timed"
    assert engine_folder(bundle, machine.library, machine.target).is_dir()
    tiles = ["bench", "tiles", "--bundle", str(bundle.folder), "--backend", machine.name]
    cli.app([*tiles, "--warmup", "0", "--repeats", "1", "--json"], standalone_mode=False)
    shown = capsys.readouterr()
    assert "adding engines to the 4" in shown.err
    assert {one["tile"] for one in json.loads(shown.out)["tiles"]} == {256, 64}


def test_a_service_builds_all_engines_before_anybody_asks(
    machine: Machine, make_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("uvicorn", reason='needs the service: pip install "tudsr[serve]"')
    from tudsr_serve.command import _upscaler
    from tudsr_serve.options import ServeOptions

    folder = make_bundle(tmp_path / "b", unet="offset", dtype="float16", tile=256, smaller=(64,))
    options = dataclasses.replace(ServeOptions(), backend=machine.name)
    _upscaler(open_bundle(folder), options, Terminal()).close()
    assert "engine 8 of 8" in capsys.readouterr().err


def test_verify_runs_the_engines_of_a_folder(
    machine: Machine, make_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bundle(tmp_path / "golden", unet="offset", dtype="float16", tile=64)
    bundle = open_bundle(add_golden(folder, 64))
    named = ensure_engines(Wanted(bundle, machine.library, machine.target), tmp_path / "mine").path
    line = ["bundle", "verify", str(folder), "--engines", str(named)]
    cli.app(line, standalone_mode=False)
    shown = capsys.readouterr()
    assert f"back end: {machine.name} on cuda" in shown.err
    assert "golden tile, stage2: " in shown.out
    assert not engine_folder(bundle, machine.library, machine.target).exists()
    machine.trt.error = 0.05
    with pytest.raises(NotFiniteError, match="this back end does not compute what"):
        cli.app(line, standalone_mode=False)


def rewrite(folder: Path, change: Callable[[dict], None]) -> None:
    """Change the record of a folder of engines."""
    path = folder / RECORD_NAME
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_the_command_builds_what_its_pictures_need_and_more_when_memory_runs_out(
    machine: Machine,
    make_bundle: MakeBundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_bundle(tmp_path / "b", unet="offset", dtype="float16", tile=128, smaller=(64,))
    for side in (16, 32):
        Image.new("RGB", (side, side), "grey").save(tmp_path / f"{side}.png")

    def upscale(side: int, *more: str) -> str:
        line = ["upscale", str(tmp_path / f"{side}.png"), "--bundle", str(folder), "--factors", "4x-"]
        cli.app(
            [*line, "--backend", machine.name, "--overlap", "24", "--overwrite", *more], standalone_mode=False
        )
        return capsys.readouterr().err

    assert "engine 3 of 3, unet_stage1-64" in upscale(16)
    with pytest.raises(DeviceError, match=r"there is none for vae_encoder/model\.onnx"):
        upscale(32, "--dry-run")
    shown = capsys.readouterr().err
    assert "stage 1 with 128 px: engines, not built yet; about the " in shown
    assert re.search(
        r"stage 1 with 64 px: engines, [\d.]+ MB on the disk and the GPU", upscale(16, "--dry-run")
    )
    load = _Runtime.load

    def scarce(self: _Runtime, graph: Path, variant: Variant, target: Target) -> Engine:
        if variant.tile == 128:
            raise MemoryExhausted("out of memory")
        return load(self, graph, variant, target)

    monkeypatch.setattr(_Runtime, "load", scarce)
    shutil.rmtree(tmp_path / "cache")
    shown = upscale(32)
    assert "engine 1 of 3, vae_encoder:" in shown
    assert "starting again with 64 px" in shown
    assert "adding engines to the 3 in" in shown
    assert (tmp_path / "32_x4.png").exists()
