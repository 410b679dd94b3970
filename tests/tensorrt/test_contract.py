"""Every name and call that the TensorRT back ends and the builder make, bound to the real libraries.

The stand-ins (tests/tensorrt/fakes.py) record what is asked of them during a build and a run; here the record
is held against TensorRT's own Python bindings of 10 and 11, whose names and signatures can be read without a
GPU, against TensorRT for RTX, and against cuda-bindings.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.tensorrt.conftest import Machine
from tests.tensorrt.fakes import Usage
from tests.tensorrt.graphs import write_graph
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.engines.backend import Choice
from tudsr_runtime.engines.stages import LoadedEngines
from tudsr_runtime.engines.tensorrt.build_log import BuildLog, Watcher, make_logger, make_monitor
from tudsr_runtime.engines.tensorrt.builder import build_engine
from tudsr_runtime.engines.tensorrt.store import Wanted, ensure_engines
from tudsr_runtime.errors import BundleError

MakeBundle = Callable[..., Path]
SHARED = Path(__file__).parents[3] / "shared" / "tensorrt_api" / "make_stub.py"
VERSIONS = ("10.9.0.34", "11.4.0.106")
"""The oldest that tudsr takes, and one of 11."""

HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
HAS_CUDA = importlib.util.find_spec("cuda") is not None


@pytest.fixture
def usage(machine: Machine, make_bundle: MakeBundle, tmp_path: Path) -> Usage:
    """What a build that fails, one that does not, and a run of a stage ask of the library."""
    bundle = open_bundle(make_bundle(tmp_path / "b", unet="offset", dtype="float16", tile=64))
    ensure_engines(Wanted(bundle, machine.library, machine.target))
    with LoadedEngines(bundle, Choice(machine.name, "cuda", "for the test")) as loaded:
        loaded.stage(0).run(np.zeros((1, 3, 64, 64), np.float32))
    build_engine(write_graph(tmp_path / "cast.onnx", "Cast"), machine.target, machine.library)
    with pytest.raises(BundleError, match="No importer registered for op"):
        build_engine(
            write_graph(tmp_path / "foreign.onnx", "MyThing", domain="x"), machine.target, machine.library
        )
    return machine.trt._usage


@pytest.fixture(scope="session")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """TensorRT's Python bindings of a version, imported without the library behind them."""
    if not SHARED.is_file():
        pytest.skip(f"needs {SHARED}, which fetches TensorRT's bindings and makes them importable")
    folder = tmp_path_factory.mktemp("bindings")

    # A network that does not answer is not waited for.
    environment = os.environ | {"PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "10"}

    def load(version: str) -> dict[str, Any]:
        target = folder / version
        made = subprocess.run(
            [sys.executable, SHARED, target, version],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        if made.returncode:
            pytest.skip(f"TensorRT's bindings {version} cannot be had here: {made.stderr.strip()[-200:]}")
        return target

    return load


READ = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
found = {}
for dotted in json.load(sys.stdin):
    value = module
    try:
        for part in dotted.split("."):
            value = getattr(value, part)
    except AttributeError:
        continue
    found[dotted] = (value.fget.__doc__ if isinstance(value, property) else value.__doc__) or ""
json.dump(found, sys.stdout)
"""


def documented(module: str, names: set[str], path: Path | None = None) -> dict[str, str]:
    """Those of `names` that the module has, with their docstrings, which hold pybind11's signatures.

    Read in another process: two versions of the bindings cannot be loaded in one.
    """

    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    done = subprocess.run(
        [sys.executable, "-c", READ, module],
        input=json.dumps(sorted(names)),
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return dict(json.loads(done.stdout))


def signatures(doc: str) -> list[inspect.Signature]:
    """The signatures in a docstring of pybind11: `name(self: Class, a: int, b: str = None) -> bool`."""
    found = []
    for line in re.findall(r"^(?:\d+\. )?\w+\((self: .*|\w+: .*)\)(?: -> .*)?$", doc, re.MULTILINE):
        # Types and defaults may hold commas and brackets: only top-level commas separate.
        parts, depth = [""], 0
        for character in line:
            depth += (character in "[(<") - (character in "])>")
            if character == "," and not depth:
                parts.append("")
            else:
                parts[-1] += character
        parameters = []
        for part in parts:
            name = part.split(":")[0].strip()
            has_default = re.search(r" = ", part) is not None
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=None if has_default else inspect.Parameter.empty,
                )
            )
        found.append(inspect.Signature(parameters))
    return found


def check(usage: Usage, module: str, path: Path | None = None) -> None:
    """Every name exists, and every call binds to a signature."""
    calls = {(name, len(args), tuple(sorted(kwargs))): (args, kwargs) for name, args, kwargs in usage.calls}
    names = usage.names | {name for name, *_ in calls}
    found = documented(module, names, path)
    assert not names - found.keys(), f"{module} lacks {sorted(names - found.keys())}"
    for (name, *_), (args, kwargs) in calls.items():
        self = (None,) if "." in name else ()
        possible = signatures(found[name])
        assert possible, f"{name}: no signature in {found[name][:200]!r}"
        assert any(binds(one, (*self, *args), kwargs) for one in possible), (
            f"{name}{args}{kwargs}: {possible}"
        )


def binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("machine", ["tensorrt"], indirect=True)
@pytest.mark.parametrize("version", VERSIONS)
def test_tensorrt_has_what_is_asked_of_it(
    version: str, usage: Usage, bindings: Callable[[str], Path]
) -> None:
    assert {"IExecutionContext.execute_async_v3", "ParserError.node_name"} <= usage.names
    check(usage, "tensorrt_bindings", bindings(version))


@pytest.mark.parametrize("machine", ["tensorrt-rtx"], indirect=True)
def test_tensorrt_for_rtx_has_what_is_asked_of_it(usage: Usage) -> None:
    if not HAS_RTX:
        pytest.skip('needs TensorRT for RTX: pip install "tudsr[rtx]"')
    assert {"IRuntimeConfig.set_runtime_cache", "Runtime.get_engine_validity"} <= usage.names
    check(usage, "tensorrt_rtx")


COUNT = """
import inspect, json
from cuda.bindings import runtime
runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
runtime.cudaError_t.cudaErrorMemoryAllocation
members = {name: getattr(runtime, name) for name in dir(runtime) if name.startswith("cuda")}
functions = {name for name, one in members.items() if callable(one) and not isinstance(one, type)}
print(json.dumps({
    name: len(inspect.signature(one).parameters) if name in functions else None
    for name, one in members.items()
}))
"""


@pytest.mark.usefixtures("usage")
def test_cuda_has_what_is_asked_of_it(machine: Machine) -> None:
    if not HAS_CUDA:
        pytest.skip('needs cuda-bindings: pip install "tudsr[rtx]"')
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    real = json.loads(done.stdout)
    used = machine.cuda._usage
    assert not used.names - real.keys()
    for name, args, _ in used.calls:
        assert real[name] == len(args), f"{name}{args}"


def test_the_listeners_are_what_the_libraries_call() -> None:
    """TensorRT calls these methods by position."""
    trt = SimpleNamespace(ILogger=type("ILogger", (), {}), IProgressMonitor=type("IProgressMonitor", (), {}))
    logger, monitor = make_logger(trt, BuildLog()), make_monitor(trt, Watcher(None))
    if not HAS_RTX:
        pytest.skip('needs TensorRT for RTX: pip install "tudsr[rtx]"')
    methods = {
        "ILogger.log": logger.log,
        "IProgressMonitor.phase_start": monitor.phase_start,
        "IProgressMonitor.step_complete": monitor.step_complete,
        "IProgressMonitor.phase_finish": monitor.phase_finish,
    }
    docs = documented("tensorrt_rtx", set(methods))
    for name, method in methods.items():
        (signature,) = signatures(docs[name])
        assert len(signature.parameters) - 1 == len(inspect.signature(method).parameters), name
