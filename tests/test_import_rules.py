"""Who may import whom, read from the source, and what a start of the command really loads.

cli.py        -> the command module of each package, inside the command that needs it; their options
tudsr_eval    -> tudsr_runtime; tudsr_train and torch inside functions alone
tudsr_serve   -> tudsr_runtime, the [serve] extra, numpy and Pillow
tudsr_export  -> tudsr_train, tudsr_runtime
tudsr_train   -> tudsr_runtime (errors, atomic, files, machine, metrics, installation, streams, typed, ...);
                 teacher.py runs bundles by its Upscaler
tudsr_runtime -> nothing of ours; at module top only the standard library, numpy and Pillow
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import tracked

ROOT = tracked.ROOT
OURS = ("cli", "tudsr_runtime", "tudsr_train", "tudsr_export", "tudsr_eval", "tudsr_serve")
HEAVY = {"torch", "diffusers", "peft", "transformers", "accelerate", "onnx", "onnxscript", "safetensors"}
BANNED = {"torchvision", "basicsr", "piq", "pyiqa"}


@dataclass(frozen=True)
class Import:
    file: str
    line: int
    module: str
    deferred: bool
    """Inside a function, or only for the type checker."""

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports(path: Path) -> Iterator[Import]:
    yield from _below(ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix(), False)


def _below(node: ast.AST, file: str, deferred: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(file, child.lineno, alias.name, deferred)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{file}:{child.lineno} is a relative import"
            # `from package import module` may name a module, so that both readings are looked at.
            yield Import(file, child.lineno, str(child.module), deferred)
            if child.module in OURS:
                for alias in child.names:
                    yield Import(file, child.lineno, f"{child.module}.{alias.name}", deferred)
        else:
            yield from _below(child, file, deferred or _defers(child))


def _defers(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def of_package(package: str) -> list[Import]:
    modules = (path for path in tracked.files(package) if path.suffix == ".py")
    return [found for path in modules for found in imports(path)]


def broken(found: list[Import], rule: object) -> list[str]:
    return [str(one) for one in found if not rule(one)]


def test_the_reader_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    source = "import a.b\nif TYPE_CHECKING:\n    import c\ntry:\n    from d import e\nfinally:\n    pass\n"
    (tmp_path / "m.py").write_text(source + "def f():\n    from tudsr_train import g\n")
    seen = [(one.module, one.deferred) for one in imports(tmp_path / "m.py")]
    late = [("tudsr_train", True), ("tudsr_train.g", True)]
    assert seen == [("a.b", False), ("c", True), ("d", False), *late]


def test_runtime_imports_none_of_the_others_and_little_at_the_top() -> None:
    light = {*sys.stdlib_module_names, "numpy", "PIL", "tudsr_runtime"}

    def allowed(one: Import) -> bool:
        return one.package not in HEAVY | (set(OURS) - {"tudsr_runtime"}) and (
            one.deferred or one.package in light or one.file.endswith("/options.py")
        )

    assert not broken(of_package("tudsr_runtime"), allowed)


ROOMS = {
    "pictures": {"atomic", "errors", "planes", "pictures", "streams"},
    "tiling": {"errors", "factors", "manifest", "planes", "tiling"},
    # the commands of the TensorRT engines speak to the user
    "engines": {"atomic", "bundle", "calls", "engines", "errors", "files", "installation", "machine"}
    | {"manifest", "planes", "streams", "terminal", "typed"},
}
"""What the rooms of the runtime may import of it: none of them knows another."""


@pytest.mark.parametrize("room", ROOMS)
def test_pictures_tiling_and_engines_do_not_know_each_other(room: str) -> None:
    def allowed(one: Import) -> bool:
        return one.package != "tudsr_runtime" or one.module.split(".")[1] in ROOMS[room]

    assert not broken(of_package(f"tudsr_runtime/{room}"), allowed)


def test_only_those_who_conduct_import_the_upscaler() -> None:
    conductors = ("tudsr_runtime/batch/", "tudsr_runtime/bench/", "tudsr_runtime/__init__.py")

    def allowed(one: Import) -> bool:
        return one.module != "tudsr_runtime.upscaler" or one.file.startswith(conductors)

    assert not broken(of_package("tudsr_runtime"), allowed)


def test_train_needs_little_of_the_runtime() -> None:
    names = "errors atomic files machine installation metrics streams typed version"
    modules = {f"tudsr_runtime.{name}" for name in names.split()}

    def allowed(one: Import) -> bool:
        teaches = (one.file, one.module) == ("tudsr_train/teacher.py", "tudsr_runtime.upscaler")
        ours = one.package == "tudsr_train" or _within(one.module, modules)
        return one.package not in OURS or ours or teaches

    assert not broken(of_package("tudsr_train"), allowed)


def _within(module: str, packages: set[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def test_metrics_need_numpy_alone() -> None:
    light = {*sys.stdlib_module_names, "numpy"}
    ours = {"tudsr_runtime.errors", "tudsr_runtime.metrics"}

    def allowed(one: Import) -> bool:
        return one.package in light or _within(one.module, ours)

    assert not broken(of_package("tudsr_runtime/metrics"), allowed)


def test_eval_is_light_until_a_learned_metric_is_asked_for() -> None:
    light = {*sys.stdlib_module_names, "numpy", "PIL", "tudsr_runtime", "tudsr_eval"}
    late = light | {"torch", "safetensors", "tudsr_train", "huggingface_hub"}

    def allowed(one: Import) -> bool:
        return one.package in (late if one.deferred else light) or one.file.endswith("/options.py")

    assert not broken(of_package("tudsr_eval"), allowed)


SERVED_BY = {"anyio", "fastapi", "pydantic", "starlette", "uvicorn"}


def test_serve_needs_the_runtime_and_its_extra_and_nobody_needs_serve() -> None:
    light = {*sys.stdlib_module_names, "numpy", "PIL", "tudsr_runtime", "tudsr_serve", *SERVED_BY}
    found = [one for one in of_package("tudsr_serve") if not one.file.endswith("/options.py")]
    assert not broken(found, lambda one: one.package in light)
    others = [one for package in OURS if package.startswith("tudsr_") for one in of_package(package)]
    elsewhere = [one for one in others if not one.file.startswith("tudsr_serve/")]
    assert not broken(elsewhere, lambda one: one.package not in {"tudsr_serve", *SERVED_BY})


def test_export_does_not_import_the_command_line() -> None:
    assert not broken(of_package("tudsr_export"), lambda one: one.package != "cli")


def test_command_line_imports_packages_only_inside_commands() -> None:
    light = {*sys.stdlib_module_names, "typer"}
    runtime = {"tudsr_runtime.entry", "tudsr_runtime.version"}

    def allowed(one: Import) -> bool:
        if one.package not in OURS:
            return one.package in light
        if re.search(r"\boptions\b", one.module):
            return True
        return one.deferred and (one.module.endswith("command") or one.module in runtime)

    assert not broken(list(imports(ROOT / "cli.py")), allowed)


def test_options_are_light_enough_for_help() -> None:
    light = {*sys.stdlib_module_names, "typer"}
    late = {"errors", "installation", "terminal"}
    files = [path for package in OURS for path in (ROOT / package).rglob("options.py")]
    assert len(files) >= 3
    found = [one for path in files for one in imports(path)]

    def allowed(one: Import) -> bool:
        if one.package in light or one.module == "tudsr_runtime.engines.options":
            return True
        return one.deferred and one.module in {f"tudsr_runtime.{name}" for name in late}

    assert not broken(found, allowed)


@pytest.mark.parametrize(
    "package", ["tudsr_runtime", "tudsr_train", "tudsr_export", "tudsr_eval", "tudsr_serve"]
)
def test_libraries_that_we_do_not_use(package: str) -> None:
    assert not broken(of_package(package), lambda one: one.package not in BANNED)


@pytest.mark.parametrize("package", ["tudsr_train", "tudsr_export", "tudsr_eval"])
def test_commands_load_no_heavy_package_before_they_run(package: str) -> None:
    found = list(imports(ROOT / package / "command.py"))
    assert not broken(found, lambda one: one.deferred or one.package not in HEAVY)


def loaded_after(script: str) -> set[str]:
    code = f"import sys\n{script}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    return set(done.stderr.split())


def test_help_loads_options_and_nothing_else_of_the_packages() -> None:
    script = "import cli\ntry:\n    cli.app(['upscale', '--help'])\nexcept SystemExit:\n    pass"
    loaded = loaded_after(script)
    assert not loaded & {*HEAVY, "numpy", "PIL", "onnxruntime", "rich.console"}
    ours = {name for name in loaded if name.startswith("tudsr_") and "." in name}
    folders = {name.rpartition(".")[0] for name in ours}
    assert {name for name in ours - folders if not name.endswith(".options")} <= {"tudsr_runtime.version"}


def test_the_runtime_loads_no_engine_until_it_is_chosen() -> None:
    script = "import tudsr_runtime, tudsr_runtime.batch.command, tudsr_runtime.upscaler"
    assert not loaded_after(script) & {*HEAVY, "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}
