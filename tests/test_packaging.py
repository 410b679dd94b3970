"""What the wheel holds, and what an editable install runs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tudsr_runtime.version import __version__

ROOT = Path(__file__).parent.parent
PACKAGES = {"tudsr", "tudsr_runtime", "tudsr_train", "tudsr_export", "tudsr_eval"}


def build(function: str, folder: Path) -> dict[str, bytes]:
    """Build with a function of hatchling.build; the content of the wheel."""
    code = f"import sys\nfrom hatchling.build import {function}\n{function}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    pytest.importorskip("hatchling", reason="building the wheel needs hatchling")
    return build("build_wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_claims_only_our_names(wheel: dict[str, bytes]) -> None:
    top = {name.partition("/")[0] for name in wheel}
    assert top == {*PACKAGES, f"tudsr-{__version__}.dist-info"}


def test_the_wheel_holds_every_module_and_nothing_else_of_the_repository(wheel: dict[str, bytes]) -> None:
    ours = {name for name in wheel if ".dist-info/" not in name}
    modules = {
        path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    }
    assert {name for name in ours if name.endswith(".py")} == {*modules, "tudsr/cli.py"}
    others = {name for name in ours if not name.endswith((".py", "/py.typed"))}
    assert {name for name in others if not name.startswith("tudsr_runtime/bundles/")} == {
        "tudsr_export/photo.png",  # what the export compares the finished bundle on
        "tudsr_eval/page.html",
        "tudsr_eval/published.json",
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


def test_an_editable_install_runs_the_checkout(tmp_path: Path) -> None:
    pytest.importorskip("editables", reason="an editable build needs editables")
    content = build("build_editable", tmp_path)
    assert content["tudsr/cli.py"] == b"from cli import main as main\n"
    assert str(ROOT).encode() in content["_editable_impl_tudsr.pth"]


def test_no_extra_brings_both_builds_of_onnx_runtime() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, requirements in extras.items():
        packages = {requirement.partition(">")[0].partition("[")[0] for requirement in requirements}
        assert not {"onnxruntime", "onnxruntime-gpu"} <= packages, name
