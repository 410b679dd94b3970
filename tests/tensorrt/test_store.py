"""The engines of a bundle: built once, published whole, built again only for a reason that is told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.tensorrt.conftest import Machine
from tests.tensorrt.fakes import NO_MEMORY_TO_BUILD
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.engines.backend import Choice
from tudsr_runtime.engines.stages import LoadedEngines
from tudsr_runtime.engines.tensorrt import store
from tudsr_runtime.engines.tensorrt.builder import build_engine
from tudsr_runtime.engines.tensorrt.command import engines_of
from tudsr_runtime.engines.tensorrt.inspection import inspect
from tudsr_runtime.engines.tensorrt.layers import read_inspector, read_layers
from tudsr_runtime.engines.tensorrt.library import Library, open_library
from tudsr_runtime.engines.tensorrt.record import RECORD_NAME, engine_folder, read_record
from tudsr_runtime.engines.tensorrt.store import (
    EngineFolder,
    Reporter,
    Wanted,
    ensure_engines,
    expected_seconds,
)
from tudsr_runtime.errors import BundleError, DeviceError, MemoryExhausted, OutputError
from tudsr_runtime.files import exclusive

MakeBundle = Callable[..., Path]
COMPONENTS = ("unet_stage1", "unet_stage2", "vae_decoder", "vae_encoder")


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path) -> Bundle:
    return open_bundle(make_bundle(tmp_path / "bundle", unet="offset", dtype="float16", tile=64))


@pytest.fixture
def wanted(machine: Machine, bundle: Bundle) -> Wanted:
    return Wanted(bundle, machine.library, machine.target)


class Notes(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.begun: list[tuple[int, int, str, bool]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def component(self, number: int, count: int, name: str, expected: float | None) -> None:
        self.begun.append((number, count, name, expected is not None))


def test_the_folder_and_its_record(wanted: Wanted, machine: Machine, cache: Path) -> None:
    notes = Notes()
    found = ensure_engines(wanted, reporter=notes)
    version = machine.trt.__version__
    assert (
        found.path == cache / "engines" / wanted.bundle.sha256 / f"{machine.name}-{version}-{machine.target}"
    )
    names = {f"{name}.{end}" for name in COMPONENTS for end in ("plan", "layers.json")}
    assert {one.name for one in found.path.iterdir()} == {RECORD_NAME, *names}
    assert read_record(found.path) == found.record
    assert [one[:2] for one in notes.begun] == [(i, 4) for i in range(1, 5)]
    assert not notes.begun[0][3], "nothing has been timed yet"
    assert {one[2]: one[3] for one in notes.begun}["unet_stage2"], "the first UNet has"
    assert {one[2] for one in notes.begun} == set(wanted.bundle.manifest.components)
    assert notes.notes == []
    plan = found.record.plans["unet_stage1/model.onnx"]
    assert plan.graph == wanted.bundle.variant("unet_stage1").files
    assert plan.file.bytes == (found.path / "unet_stage1.plan").stat().st_size
    assert plan.facts.activation_bytes == 4096


def test_the_second_time_nothing_is_built(wanted: Wanted) -> None:
    assert ensure_engines(wanted).built
    assert not ensure_engines(wanted).built


def test_before_a_run_sizes_are_looked_at_and_bytes_where_they_are_loaded(wanted: Wanted) -> None:
    plan = ensure_engines(wanted).path / "unet_stage1.plan"
    flip(plan)
    assert not ensure_engines(wanted, thorough=False).built
    plan.write_bytes(plan.read_bytes()[:-1])
    assert ensure_engines(wanted, thorough=False).built


@pytest.fixture
def sized(make_bundle: MakeBundle, tmp_path: Path) -> Bundle:
    """With tiles of three sizes."""
    folder = tmp_path / "sized"
    return open_bundle(
        make_bundle(folder, unet="offset", dtype="float16", tile=128, smaller=(64,), larger=(192,))
    )


def test_only_the_engines_of_a_plan_are_built_and_others_are_added(machine: Machine, sized: Bundle) -> None:
    def build(*places: tuple[int, int]) -> tuple[set[str], list[str], EngineFolder]:
        notes = Notes()
        wanted = Wanted(sized, machine.library, "sm89", None, engines_of(sized, places))
        found = ensure_engines(wanted, reporter=notes)
        return {one[2] for one in notes.begun}, notes.notes, found

    first = {
        "vae_encoder-64",
        "unet_stage1-64",
        "vae_decoder-64",
        "vae_encoder",
        "unet_stage2",
        "vae_decoder",
    }
    begun, notes, found = build((0, 64), (1, 128))
    assert begun == first
    assert not notes
    before = {plan.component: plan.file for plan in found.record.plans.values()}
    begun, notes, found = build((0, 64), (1, 192))
    assert begun == {"vae_encoder-192", "unet_stage2-192", "vae_decoder-192"}
    assert notes == [f"adding engines to the 6 in {found.path}"]
    after = {plan.component: plan.file for plan in found.record.plans.values()}
    assert before.items() <= after.items()
    assert {one.name for one in found.path.glob("*.plan")} == {f"{name}.plan" for name in after}
    assert build((1, 128))[:2] == (set(), [])
    flip(found.path / "unet_stage2.plan")
    assert build((0, 64))[:2] == (set(), []), "what is not needed is not read"
    begun, notes, _ = build((1, 128))
    assert begun == {"unet_stage2"}
    assert notes == ["building the engines again: unet_stage2.plan has changed since it was built"]


def test_only_sound_engines_are_kept_beside_new_ones(machine: Machine, sized: Bundle) -> None:
    """Not read before a run, but where a build takes its time anyway."""

    def wanted(*places: tuple[int, int]) -> Wanted:
        return Wanted(sized, machine.library, "sm89", None, engines_of(sized, places))

    flip(ensure_engines(wanted((1, 128))).path / "unet_stage2.plan")
    assert not ensure_engines(wanted((1, 128)), thorough=False).built
    added = ensure_engines(wanted((0, 64)), thorough=False)
    kept = {"vae_encoder", "vae_decoder"}
    new = {f"{name}-64" for name in ("vae_encoder", "unet_stage1", "vae_decoder")}
    assert {plan.component for plan in added.record.plans.values()} == kept | new


def test_engines_of_another_version_are_not_kept(machine: Machine, sized: Bundle) -> None:
    small = Wanted(sized, machine.library, "sm89", None, engines_of(sized, [(0, 64)]))
    rewrite(ensure_engines(small).path, version="1.0")
    notes = Notes()
    large = Wanted(sized, machine.library, "sm89", None, engines_of(sized, [(0, 192)]))
    found = ensure_engines(large, reporter=notes)
    assert {plan.component for plan in found.record.plans.values()} == set(large.variants)


def test_two_at_a_time_build_once(wanted: Wanted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[str] = []
    build = store.build_engine

    def counting(*args: object, **kwargs: object) -> object:
        built.append(threading.current_thread().name)
        return build(*args, **kwargs)

    monkeypatch.setattr(store, "build_engine", counting)
    notes = [Notes(), Notes()]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda one: ensure_engines(wanted, tmp_path / "e", one), notes))
    assert sorted(one.built for one in found) == [False, True]
    assert len(built) == 4
    assert len(set(built)) == 1


def test_the_lock_holds_between_processes_and_ends_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from tudsr_runtime.files import exclusive\n"
        "with exclusive(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    lock = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with exclusive(lock, waiting=holder.kill):
            assert holder.wait() != 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: flip(folder / "unet_stage1.plan"), "unet_stage1.plan has changed since it was built"),
        (lambda folder: (folder / "vae_decoder.plan").unlink(), r"vae_decoder\.plan cannot be read"),
        (lambda folder: (folder / RECORD_NAME).write_text("{"), r"engine\.json is damaged"),
        (lambda folder: rewrite(folder, version="1.0"), "for the library's version 1.0, this is "),
        (lambda folder: rewrite(folder, target="sm86"), "for the target sm86, this is sm89"),
        (lambda folder: rewrite(folder, plans={}), r"there is none for .*model\.onnx"),
    ],
)
def test_what_does_not_serve_is_built_again_and_why(
    wanted: Wanted, change: Callable[[Path], object], reason: str
) -> None:
    first = ensure_engines(wanted)
    change(first.path)
    notes = Notes()
    again = ensure_engines(wanted, reporter=notes)
    assert again.built
    (note,) = notes.notes
    assert note.startswith("building the engines again: ")
    assert re.search(reason, note), note
    assert not ensure_engines(wanted).built


def test_a_new_library_and_a_new_graph_are_told(
    wanted: Wanted, machine: Machine, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    ensure_engines(wanted)
    other = open_bundle(make_bundle(tmp_path / "other", unet="identity", dtype="float16", tile=64))
    notes = Notes()
    assert ensure_engines(Wanted(other, machine.library, machine.target), reporter=notes).built
    assert notes.notes == ["building the engines again: the graph unet_stage1/model.onnx has changed"]
    machine.trt.__version__ = "11.9.0" if machine.name == "tensorrt" else "2.0.0"
    notes = Notes()
    assert ensure_engines(wanted, reporter=notes).built
    assert "they were built for the library's version" in notes.notes[0]


def test_a_build_that_fails_leaves_nothing_and_what_was_there(wanted: Wanted, machine: Machine) -> None:
    machine.trt.refuses = {"build"}
    with pytest.raises(DeviceError, match="Could not find any implementation for node the_node") as caught:
        ensure_engines(wanted)
    assert caught.value.exit_code == 6
    folder = engine_folder(wanted.bundle, wanted.library, wanted.target)
    assert [one.name for one in folder.parent.iterdir()] == [f".{folder.name}.lock"]
    machine.trt.refuses = set()
    ensure_engines(wanted)
    flip(folder / "unet_stage1.plan")
    machine.trt.refuses = {"build"}
    with pytest.raises(DeviceError):
        ensure_engines(wanted)
    assert (folder / RECORD_NAME).is_file()


def test_a_build_that_runs_out_of_memory_says_so(wanted: Wanted, machine: Machine) -> None:
    """TensorRT only warns of the kernels that it leaves out; the error is that none is left."""
    machine.trt.refuses = {"build"}
    for lines in (NO_MEMORY_TO_BUILD, NO_MEMORY_TO_BUILD[2:]):
        machine.trt.says = {"build": lines}
        with pytest.raises(MemoryExhausted, match=r"building .*model\.onnx: Skipping tactic 8 due to insuff"):
            ensure_engines(wanted)
    unrelated = ("[E]", "Error Code 2: Internal Error (Assertion shape.nbDims == 4 failed.)")
    machine.trt.says = {"build": (*NO_MEMORY_TO_BUILD[1:3], unrelated)}
    with pytest.raises(DeviceError, match="Assertion shape"):
        ensure_engines(wanted)


def test_a_folder_of_someone_else_is_not_replaced(wanted: Wanted, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(OutputError, match=r"holds 'cat\.jpg', which is no engine"):
        ensure_engines(wanted, tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


def test_a_graph_that_differs_from_the_manifest_is_refused(wanted: Wanted, bundle: Bundle) -> None:
    (bundle.folder / "vae_encoder" / "model.onnx").write_bytes(
        (bundle.folder / "vae_decoder" / "model.onnx").read_bytes()
    )
    with pytest.raises(BundleError, match=r"vae_encoder/model\.onnx: its input is .* the manifest says"):
        ensure_engines(wanted)


def test_another_precision_lies_apart(machine: Machine, bundle: Bundle) -> None:
    path = engine_folder(bundle, machine.library, machine.target, "fp32")
    assert path.name.endswith(f"-{machine.target}-fp32")
    assert not engine_folder(bundle, machine.library, machine.target, "fp16").name.endswith("fp16")
    with pytest.raises(BundleError, match="has no variant with precision fp32"):
        ensure_engines(Wanted(bundle, machine.library, machine.target, "fp32"))


@pytest.mark.parametrize("machine", ["tensorrt"], indirect=True)
def test_what_was_timed_for_one_unet_serves_the_other(wanted: Wanted, machine: Machine, cache: Path) -> None:
    ensure_engines(wanted)
    assert machine.trt.seen_timings == [b"", b"t", b"tt", b"ttt"]
    (kept,) = (cache / "timings").iterdir()
    assert kept.read_bytes() == b"tttt"
    kept.write_bytes(b"other GPU")
    machine.trt.seen_timings.clear()
    ensure_engines(wanted, cache / "elsewhere")
    assert machine.trt.seen_timings[0] == b""


def test_the_time_that_a_graph_like_it_took(wanted: Wanted) -> None:
    assert expected_seconds(wanted.library, 1000) is None
    record = ensure_engines(wanted).record
    (size,) = {
        sum(file.bytes for file in plan.graph) for name, plan in record.plans.items() if "encoder" in name
    }
    assert expected_seconds(wanted.library, size) is not None
    assert expected_seconds(wanted.library, 1 << 40) is None


LISTING = """Layers:
Name: _gemm_mha_v2_myl0_51, LayerType: kgen, Inputs: [ { Name: a, Dimensions: [1,8], Datatype: Half, Format: (Linear) Row major }], Constants: [], Outputs: [ { Name: b, Dimensions: [1,8], Datatype: Half, Format: (Linear) Row major }, { Name: c, Dimensions: [8], Datatype: Float, Format: x }], TacticName: _gemm_mha_v2_0x20, StreamId: 0, Metadata: [ONNX Layer: node_sdpa][ONNX Layer: node_Softmax_70]
Name: wait_1, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 1, EventId: 1, Metadata: 

I/O Tensors:
 Name: a, IOMode: Input
"""  # noqa: E501, W291


def test_a_listing_of_layers_is_read() -> None:
    attention, wait = read_layers(LISTING)
    assert attention.fused_attention
    assert attention.precisions == ("Half", "Float")
    assert attention.nodes == ("node_sdpa", "node_Softmax_70")
    assert (wait.kind, wait.tactic, wait.precisions, wait.nodes) == ("wait", "", (), ())
    assert not wait.fused_attention
    assert read_layers("what nobody foresaw") == ()


NATIVE = (
    "Layers:\n"
    "Name: conv + relu, LayerType: CaskConvolution, Inputs: [ { Name: a, Location: Device, "
    "Dimensions: [1,8], Format/Datatype: Half }], Outputs: [ { Name: b, Location: Device, "
    "Dimensions: [1,8], Format/Datatype: Channel major FP16 format where channel % 8 == 0 }, "
    "{ Name: c, Dimensions: [8], Format/Datatype: Row major linear FP32 }], ParameterType: Convolution, "
    "Kernel: [3,3], HasBias: 1, TacticName: sm80_xmma, StreamId: 0, "
    "Metadata: [ONNX Layer: conv][ONNX Layer: relu]\n"
)
"""How TensorRT itself lists a layer."""


def test_types_are_read_in_every_form_that_tensorrt_has() -> None:
    (listed,) = read_layers(NATIVE)
    assert listed.precisions == ("Half", "Float")
    assert listed.tactic == "sm80_xmma"
    assert listed.nodes == ("conv", "relu")
    tensors = ({"Format/Datatype": "Row major linear FP32"}, {"Datatype": "BFloat16", "Format": "Linear"})
    text = json.dumps(
        {"Layers": [{"Name": "n", "LayerType": "Reformat", "Outputs": tensors}, "a name alone"]}
    )
    assert [one.precisions for one in read_inspector(text)] == [("Float", "BFloat16")]
    assert read_inspector("what nobody foresaw") == ()


@pytest.mark.parametrize("machine", ["tensorrt"], indirect=True)
@pytest.mark.usefixtures("machine")
def test_inspect_has_the_types_of_native_engines(wanted: Wanted) -> None:
    found = ensure_engines(wanted)
    tables = "\n".join(inspect(found.path, found.record))
    assert tables.count("writes    1 half") == len(COMPONENTS)
    assert "TensorRT listed no layers" not in tables
    assert found.record.plans["unet_stage1/model.onnx"].facts.kernels == 1


@pytest.fixture
def rtx() -> Library:
    pytest.importorskip("tensorrt_rtx", reason='needs TensorRT for RTX: pip install "tudsr[rtx]"')
    return open_library("tensorrt-rtx")


@pytest.mark.slow
@pytest.mark.parametrize("component", ["vae_encoder", "unet_stage1", "vae_decoder"])
def test_nano_for_a_4090_by_the_real_builder(rtx: Library, component: str) -> None:
    """The graphs of the shipped bundle; the second UNet has the same nodes as the first."""
    bundle = open_bundle("nano")
    variant = bundle.variant(component)
    built = build_engine(bundle.path(variant), "sm89", rtx)
    assert (built.inputs, built.outputs) == (variant.inputs, variant.outputs)
    assert built.facts.casts == 0, "half all through"
    # Half of the attentions are self-attentions; the prompt's keys and values are constants.
    assert built.facts.fused_attention == built.facts.nodes.get("SOFTMAX", 0) // 2
    assert (built.facts.activation_bytes or 0) < 100e6


@pytest.mark.usefixtures("rtx")
def test_the_command_as_it_is_typed(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", unet="offset", dtype="float16", tile=64)
    folder = tmp_path / "engines"
    command = [Path(sys.executable).with_name("tudsr"), "build", bundle]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        line = [*command, "--engine", "tensorrt-rtx", "-o", folder, *more]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    done = run("--target", "sm89")
    assert done.stdout == f"{folder}\n"
    assert "engine 1 of 4, " in done.stderr
    record = read_record(folder)
    shown = json.loads(run("--target", "sm89", "--json").stdout)
    assert shown["built"] is False
    assert shown["plans"].keys() == record.plans.keys()
    tables = run("--target", "sm89", "--inspect").stdout
    assert tables == "".join(f"{line}\n" for line in inspect(folder, record))
    for word in ("unet_stage1: x float16 1x48x16x16", "fused attention", "1 elementwise", "half"):
        assert word in tables
    assert "the target sm89, this is sm86" in run("--target", "sm86").stderr


def flip(path: Path) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rewrite(folder: Path, **changes: object) -> None:
    """Change entries of the record."""
    path = folder / RECORD_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("machine", ["tensorrt-rtx"], indirect=True)
def test_engines_of_an_earlier_tudsr_are_found_and_run(machine: Machine, tmp_path: Path) -> None:
    """tests/tensorrt/recorded was written by tudsr before `engines/tensorrt` was a folder."""
    shutil.copytree(Path(__file__).with_name("recorded"), tmp_path / "recorded")
    bundle, engines = open_bundle(tmp_path / "recorded" / "bundle"), tmp_path / "recorded" / "engines"
    found = ensure_engines(Wanted(bundle, machine.library, machine.target), engines)
    assert not found.built
    assert found.record.to_json() == (engines / RECORD_NAME).read_text()
    choice = Choice(machine.name, "cuda", "for the test", engines=engines)
    x = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32) * 2 - 1
    with LoadedEngines(bundle, choice) as loaded:
        assert np.abs(loaded.stage(0).run(x) - (x + 0.25)).max() <= 2e-3
