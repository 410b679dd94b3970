"""What the wheel holds, and what an editable install runs."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests import tracked
from tests.tracked import ROOT
from tudsr_runtime.version import __version__

PACKAGES = {"tudsr", "tudsr_runtime", "tudsr_train", "tudsr_export", "tudsr_eval", "tudsr_serve"}


def build(function: str, source: Path, folder: Path) -> dict[str, bytes]:
    """Build `source` with a function of hatchling.build; the content of the wheel."""
    code = f"import sys\nfrom hatchling.build import {function}\n{function}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is tracked: a build leaves its own files in it."""
    return tracked.copy(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    pytest.importorskip("hatchling", reason="building the wheel needs hatchling")
    return build("build_wheel", checkout, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_claims_only_our_names(wheel: dict[str, bytes]) -> None:
    top = {name.partition("/")[0] for name in wheel}
    assert top == {*PACKAGES, f"tudsr-{__version__}.dist-info"}


def test_the_wheel_holds_every_module_and_nothing_else_of_the_repository(wheel: dict[str, bytes]) -> None:
    ours = {name for name in wheel if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in tracked.files(*PACKAGES) if path.suffix == ".py"}
    assert {name for name in ours if name.endswith(".py")} == {*modules, "tudsr/cli.py", "tudsr/__main__.py"}
    configs = {path.relative_to(ROOT).as_posix() for path in tracked.files("configs")}
    assert configs
    assert {f"tudsr_train/{name}" for name in configs} <= ours
    others = {name for name in ours if not name.endswith((".py", "/py.typed"))}
    others -= {f"tudsr_train/{name}" for name in configs}
    assert {name for name in others if not name.startswith("tudsr_runtime/bundles/")} == {
        "tudsr_export/photo.png",  # what the export compares the finished bundle on
        "tudsr_eval/page.html",
        "tudsr_eval/published.json",
        "tudsr_serve/page.html",
        "tudsr_runtime/metrics/niqe_pristine.npz",
        "tudsr_runtime/metrics/NOTICE.md",
    }


def test_the_command_is_the_one_of_the_repository(wheel: dict[str, bytes]) -> None:
    assert wheel["tudsr/cli.py"] == (ROOT / "cli.py").read_bytes()
    entry = wheel[f"tudsr-{__version__}.dist-info/entry_points.txt"].decode()
    assert "tudsr = tudsr.cli:main" in entry


def test_types_and_licence_travel_along(wheel: dict[str, bytes]) -> None:
    assert "tudsr_runtime/py.typed" in wheel
    assert wheel[f"tudsr-{__version__}.dist-info/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_an_editable_install_runs_the_checkout(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("editables", reason="an editable build needs editables")
    content = build("build_editable", checkout, tmp_path)
    assert b"from cli import main as main\n" in content["tudsr/cli.py"]
    assert str(checkout).encode() in content["_editable_impl_tudsr.pth"]


def test_the_command_runs_as_a_module_from_a_wheel_and_from_a_checkout(
    checkout: Path, tmp_path: Path, wheel: dict[str, bytes]
) -> None:
    pytest.importorskip("editables", reason="an editable build needs editables")
    editable = build("build_editable", checkout, tmp_path)
    for name, content, beside in (("wheel", wheel, []), ("editable", editable, [ROOT])):
        site = tmp_path / name
        for file in ("tudsr/__main__.py", "tudsr/cli.py"):
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_bytes(content[file])
        path = os.pathsep.join(map(str, [site, *(beside or [ROOT])]))
        for module in ("tudsr", "tudsr.cli"):
            done = subprocess.run(
                [sys.executable, "-P", "-m", module, "--version"],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
            )
            assert (done.returncode, done.stdout) == (0, f"tudsr {__version__}\n"), (
                name,
                module,
                done.stderr,
            )


def test_a_shipped_configuration_is_found_by_its_name(wheel: dict[str, bytes], tmp_path: Path) -> None:
    """From a wheel, whose users have no checkout."""
    pytest.importorskip("torch", reason="`tudsr train` needs the [train] extra")
    for name, content in wheel.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_bytes(content)
    # Before all else, an editable install's own path included.
    start = f"import runpy, sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); "
    start += "runpy.run_module('tudsr', run_name='__main__')"
    for given in ("nano/stage1", "configs/nano/stage1.yaml"):
        done = subprocess.run(
            [sys.executable, "-c", start, "train", "stage1", "--config", given, "--print-config"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "\nout: runs/nano/stage1\n" in done.stdout
        assert str(tmp_path / "site" / "tudsr_train" / "configs" / "nano" / "stage1.yaml") in done.stderr


def test_no_extra_brings_both_builds_of_onnx_runtime() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, requirements in extras.items():
        packages = {requirement.partition(">")[0].partition("[")[0] for requirement in requirements}
        assert not {"onnxruntime", "onnxruntime-gpu"} <= packages, name
