"""Bundles and adapters from and to a hub: a fake one, asked by huggingface_hub itself."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.runtime.conftest import Tudsr
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.errors import BundleError, UsageError
from tudsr_runtime.hub.names import HubName, parse_name

_fake = importlib.util.spec_from_file_location("tests_hub_fake", Path(__file__).with_name("fake.py"))
assert _fake is not None
assert _fake.loader is not None
fake = importlib.util.module_from_spec(_fake)
sys.modules["tests_hub_fake"] = fake
_fake.loader.exec_module(fake)

MakeBundle = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""What huggingface_hub's upload of large files earns from its own HTTP library."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.Hub]:
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub, the extra [hub]")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with fake.running() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def published(hub: fake.Hub, small_bundle: Path) -> str:
    """The test's bundle on the hub; the commit."""
    more = {
        ".gitattributes": b"*.onnx filter=lfs",
        "README.md": b"# card",
        "picture.png": b"not of the bundle",
    }
    return str(hub.repository("me/sharp").commit({**content(small_bundle), **more}))


def test_a_bundle_is_pulled_once_and_runs_without_the_hub(
    tudsr: Tudsr, hub: fake.Hub, published: str, small_bundle: Path, tmp_path: Path
) -> None:
    result = tudsr("pull", "me/sharp")
    assert result.code == 0, result.err
    folder = Path(result.out.strip())
    assert folder == tmp_path / "cache" / "bundles" / "me" / "sharp" / published
    assert content(folder) == {**content(small_bundle), "README.md": b"# card"}
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    asked = len(hub.asked)
    assert tudsr("pull", "me/sharp").code == 0
    assert not [one for one in hub.asked[asked:] if "/resolve/" in one], (
        "what is here is not downloaded again"
    )
    hub.down = True
    asked = len(hub.asked)
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "a.png")
    assert tudsr("upscale", tmp_path / "a.png", "--bundle", "hf:me/sharp").code == 0
    assert tudsr("bundle", "info", "hf:me/sharp").code == 0
    assert len(hub.asked) == asked
    assert tudsr("pull", "me/sharp").code == 5


def test_a_bundle_that_is_not_here_is_downloaded_when_it_is_used(
    tudsr: Tudsr, published: str, tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "a.png")
    result = tudsr("upscale", tmp_path / "a.png", "--bundle", f"hf:me/sharp@{published}", "--json")
    assert result.code == 0, result.err
    assert "downloading hf:me/sharp@" in result.err
    done, _ = result.records
    assert done["bundle_sha256"] == open_bundle(f"hf:me/sharp@{published}").sha256


def test_a_later_commit_comes_by_pull_alone(
    tudsr: Tudsr, hub: fake.Hub, published: str, small_bundle: Path
) -> None:
    assert open_bundle("hf:me/sharp").folder.name == published
    other = content(small_bundle)
    other["bundle.json"] = other["bundle.json"].replace(b'"test"', b'"next"')
    later = hub.repository("me/sharp").commit(other)
    assert open_bundle("hf:me/sharp").manifest.name == "test"
    assert tudsr("pull", "me/sharp").code == 0
    assert open_bundle("hf:me/sharp").folder.name == later
    assert open_bundle(f"hf:me/sharp@{published}").manifest.name == "test"
    listed = tudsr("bundle", "list", "--json").records
    assert [(one["name"], one["commit"], one["revisions"]) for one in listed[1:]] == sorted(
        [(f"hf:me/sharp@{published}", published, []), ("hf:me/sharp", later, ["main"])],
        key=lambda one: one[1],
    )
    assert tudsr("bundle", "remove", f"hf:me/sharp@{published}").code == 0
    assert tudsr("bundle", "remove", "hf:me/sharp").code == 0
    assert [one["name"] for one in tudsr("bundle", "list", "--json").records] == ["nano"]
    assert tudsr("bundle", "remove", "hf:me/sharp").code == 5
    assert tudsr("bundle", "remove", "nano").code == 5


@pytest.mark.parametrize("damage", ["bytes", "missing", "manifest", "escape"])
def test_what_is_damaged_on_the_hub_is_refused_and_leaves_nothing(
    tudsr: Tudsr, hub: fake.Hub, small_bundle: Path, tmp_path: Path, damage: str
) -> None:
    files = content(small_bundle)
    graph = "unet_stage1/model.onnx"
    if damage == "bytes":
        files[graph] = files[graph][:-1] + bytes([files[graph][-1] ^ 1])
    elif damage == "missing":
        del files[graph]
    elif damage == "manifest":
        files["bundle.json"] = b"{}"
    else:
        files["bundle.json"] = files["bundle.json"].replace(graph.encode(), b"../../../evil.onnx")
        files["../../../evil.onnx"] = files[graph]
    sound = hub.repository("me/sharp").commit(content(small_bundle), "sound")
    hub.repository("me/sharp").commit(files)
    result = tudsr("pull", "me/sharp")
    assert result.code == 5
    assert "me/sharp" in result.err
    assert result.out == ""
    assert not [path for path in tmp_path.rglob("*.onnx") if "cache" in path.parts and damage != "missing"]
    assert open_bundle("hf:me/sharp@sound").folder.name == sound


@pytest.mark.usefixtures("published")
def test_a_commit_of_the_hub_cannot_name_a_folder(tudsr: Tudsr, hub: fake.Hub) -> None:
    hub.sha = "../../../../escaped"
    result = tudsr("pull", "me/sharp")
    assert result.code == 5
    assert "names no commit" in result.err


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("me/none", "there is no me/none on http://127.0.0.1"),
        ("me/sharp@other", "has no revision 'other'"),
        ("me/gated", "is gated"),
        ("me/private", "or it is private"),
        ("me/plain", "is no bundle, nor an adapter"),
    ],
)
def test_what_is_not_to_be_had_is_said_in_a_line(
    tudsr: Tudsr, hub: fake.Hub, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.repository("me/gated").gated = True
    hub.repository("me/private").private = True
    for of in ("me/gated", "me/private", "me/plain"):
        hub.repository(of).commit({"README.md": b"# nothing"})
    for command in (("pull", name), ("bundle", "info", f"hf:{name}")):
        result = tudsr(*command)
        assert result.code == 5
        assert said in result.err
        assert "Traceback" not in result.err


@pytest.mark.usefixtures("published")
def test_offline_is_a_clear_line(tudsr: Tudsr, hub: fake.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = tudsr("bundle", "info", "hf:me/sharp")
    assert result.code == 5
    assert "cannot be reached, and hf:me/sharp is not in the cache\nTry: go online" in result.err
    assert hub.asked == []


@pytest.mark.usefixtures("hub")
def test_nobody_at_the_address_is_a_clear_line(tudsr: Tudsr, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = tudsr("pull", "me/sharp")
    assert result.code == 5
    assert "http://127.0.0.1:9 cannot be reached" in result.err


def test_a_pushed_bundle_comes_back_the_same(
    tudsr: Tudsr, hub: fake.Hub, small_bundle: Path, tmp_path: Path
) -> None:
    hub.repository("me/sharp").commit({"old.onnx": b"of an earlier one", ".gitattributes": b"kept"})
    result = tudsr("push", small_bundle, "me/sharp", "-m", "the first")
    assert result.code == 0, result.err
    assert result.out.startswith(f"{hub.address}/me/sharp/commit/")
    on_hub = hub.repository("me/sharp").commits[hub.repository("me/sharp").branches["main"]]
    assert {*on_hub} == {*content(small_bundle), "README.md", ".gitattributes"}
    card = on_hub["README.md"].decode()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "--bundle hf:me/sharp" in card
    assert tudsr("pull", "me/sharp", "-o", tmp_path / "copy").out == f"{tmp_path / 'copy'}\n"
    back = content(tmp_path / "copy")
    assert {name: back[name] for name in content(small_bundle)} == content(small_bundle)
    assert tudsr("pull", "me/sharp", "-o", tmp_path / "copy").code == 8


def test_a_new_repository_is_private_if_asked(tudsr: Tudsr, hub: fake.Hub, small_bundle: Path) -> None:
    assert tudsr("push", small_bundle, "me/hidden", "--private").code == 0
    assert hub.repositories["me/hidden"].private


def test_a_damaged_bundle_is_not_pushed(
    tudsr: Tudsr, hub: fake.Hub, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    folder = make_bundle(tmp_path / "b", tile=64)
    with open(folder / "unet_stage1" / "model.onnx", "r+b") as file:
        file.write(b"\xff")
    assert tudsr("push", folder, "me/sharp").code == 5
    assert hub.asked == []


def test_without_the_right_to_write_nothing_is_changed(
    tudsr: Tudsr, hub: fake.Hub, published: str, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    result = tudsr("push", small_bundle, "me/sharp")
    assert result.code == 5
    assert "hf auth login" in result.err
    assert hub.repository("me/sharp").branches["main"] == published


def test_a_branch_that_is_not_there_is_named(tudsr: Tudsr, hub: fake.Hub, small_bundle: Path) -> None:
    hub.repository("me/sharp").commit({"README.md": b"# card"})
    result = tudsr("push", small_bundle, "me/sharp@v2")
    assert result.code == 5
    assert f"me/sharp on {hub.address} has no revision 'v2'" in result.err
    assert hub.repository("me/sharp").commits[hub.repository("me/sharp").branches["main"]].keys() == {
        "README.md"
    }


@pytest.mark.parametrize(
    ("name", "hint"), [("me/sharp", "hf:me/sharp if it is on the hub"), ("a/b/c", "hf:OWNER/NAME")]
)
def test_a_name_on_the_hub_without_its_prefix_is_answered_with_it(
    tudsr: Tudsr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tudsr("bundle", "info", name)
    assert (result.code, result.err.splitlines()[-1]) == (
        5,
        f"Try: a folder with a bundle.json, nano, or {hint}",
    )


@pytest.mark.usefixtures("hub")
def test_an_adapter_goes_and_comes_as_its_folder(tudsr: Tudsr, tmp_path: Path) -> None:
    folder = tmp_path / "stage1"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "base_model_name_or_path": "me/base"}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "tudsr.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    assert tudsr("push", folder, "me/lora").code == 0
    result = tudsr("pull", "me/lora")
    assert result.code == 0, result.err
    back = content(Path(result.out.strip()))
    assert {*back} == {"adapter_config.json", "adapter_model.safetensors", "tudsr.json", "README.md"}
    assert back["adapter_model.safetensors"] == b"weights"
    card = back["README.md"].decode()
    assert "library_name: peft" in card
    assert "rank 8 for me/base" in card


@pytest.mark.usefixtures("published")
def test_the_token_of_the_user_is_sent(tudsr: Tudsr, hub: fake.Hub) -> None:
    assert tudsr("pull", "me/sharp").code == 0
    assert {*hub.tokens} == {"Bearer hf_right"}


def test_an_interrupted_download_is_gone_on_with(hub: fake.Hub, published: str) -> None:
    name = parse_name("me/sharp")
    partial = name.folder / f".{published}"
    from tudsr_runtime.hub import transfer

    transfer._Hub(name).fetch("unet_stage1/model.onnx", published, partial)
    asked = len(hub.asked)
    assert open_bundle("hf:me/sharp").folder.name == published
    assert not [
        one for one in hub.asked[asked:] if one.startswith("GET") and one.endswith("unet_stage1/model.onnx")
    ]
    assert not partial.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "me",
        "me/",
        "/sharp",
        "me/sharp/more",
        "../sharp",
        "me/..",
        "me/sharp@",
        "me/sharp@../x",
        "-me/x",
        "m e/x",
        "https://x/y",
    ],
)
def test_what_is_no_name_is_refused(tudsr: Tudsr, text: str) -> None:
    for command in (("pull", text), ("bundle", "info", f"hf:{text}"), ("bundle", "remove", f"hf:{text}")):
        assert tudsr(*command).code == 2


@given(st.text(max_size=30))
def test_a_name_never_leads_out_of_the_cache(text: str) -> None:
    try:
        name = parse_name(text)
    except UsageError:
        return
    assert name.folder.resolve().parent.parent.name == "bundles"
    assert parse_name(str(name)) == name


def snapshot(bundle: Path, place: Path) -> Path:
    """The bundle as huggingface_hub keeps it in its own cache."""
    folder = place / "models--me--sharp" / "snapshots" / "0123"
    for number, (name, data) in enumerate(content(bundle).items()):
        blob = place / "models--me--sharp" / "blobs" / str(number)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(os.path.relpath(blob, (folder / name).parent))
    return folder


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_snapshot_of_the_hubs_own_cache_is_run(
    tudsr: Tudsr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    pytest.importorskip(backend, reason=f"needs {backend}")
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path / "cache"))
    folder = snapshot(open_bundle("nano").folder, tmp_path)
    result = tudsr("bundle", "verify", folder, "--backend", backend)
    assert result.code == 0, result.err
    assert "golden tile" in result.out


def test_a_link_out_of_the_hubs_cache_is_refused(
    tmp_path: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path / "cache"))
    folder = snapshot(small_bundle, tmp_path)
    (tmp_path / "secret").write_bytes(b"not of the bundle")
    (folder / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="is a link to something else"):
        open_bundle(folder)
    assert not (tmp_path / "cache" / "linked").exists() or not [*(tmp_path / "cache" / "linked").iterdir()]


def test_a_note_that_is_no_commit_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path))
    name = HubName("me", "sharp")
    (name.folder / "revisions").mkdir(parents=True)
    for said in (b"../../../etc", b"\xff\xfe", b""):
        (name.folder / "revisions" / "main").write_bytes(said)
        assert name.commit is None


def test_without_the_library_what_brings_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ModuleNotFoundError(name='huggingface_hub')")
    command = [sys.executable, "-c", "import cli, sys; sys.exit(cli.main())", "bundle", "info", "hf:me/sharp"]
    root = Path(__file__).parents[3]
    env = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}",
        "TUDSR_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert "hf:me/sharp needs huggingface_hub" in done.stderr
    with pytest.raises(BundleError):
        open_bundle("me/sharp")
