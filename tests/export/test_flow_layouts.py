"""Adapters of one-step methods on FLUX and SD 3 as they save them, against their own arithmetic."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.export import flow_peers
from tests.export.conftest import TILE, export
from tests.export.test_bundle_equals_generator import picture, run_bundle
from tests.export.test_layouts import Trap
from tests.train.backbones.bases import make_base
from tudsr_export.gates import Report
from tudsr_export.layouts import read_adapter
from tudsr_export.merge import attach_stage
from tudsr_export.plan import ExportPlan
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.errors import BundleError
from tudsr_train.generator import Generator

MAKERS = {"omgsr-f": flow_peers.omgsr_f, "tsd-sr": flow_peers.tsd_sr}
SETTINGS = {"omgsr-f": (505, 0.505), "tsd-sr": (1000, 1.0)}


@dataclass(frozen=True)
class Made:
    peer: flow_peers.FlowPeer
    adapter: Path
    bundle: Bundle
    report: Report


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A peer's checkpoint and the bundle of it, made on first use."""
    done: dict[str, Made] = {}

    def get(name: str) -> Made:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what peft says of saving without a hub
                peer = MAKERS[name](folder / "base", folder / "adapter")
            plan = ExportPlan(
                base=peer.base,
                adapters={1: folder / "adapter"},
                output=folder / "bundle",
                precision="fp32",
                name=name,
                licence="other",
                tile=TILE,
            )
            report = export(plan)
            done[name] = Made(peer, folder / "adapter", open_bundle(folder / "bundle"), report)
        return done[name]

    return get


@pytest.mark.parametrize("name", MAKERS)
def test_the_bundle_restores_like_the_peer(name: str, made: Callable[[str], Made]) -> None:
    one = made(name)
    expected = one.peer.restore(picture())
    torch.testing.assert_close(run_bundle(one.bundle, picture()), expected, rtol=0, atol=3e-4)
    plain = Generator.load(one.peer.base)
    with torch.no_grad():
        assert (expected - plain.decode(plain.encode(picture()))).abs().max() > 0.02
        assert (expected - plain(picture(), SETTINGS[name][0])).abs().max() > 0.02


@pytest.mark.parametrize("name", MAKERS)
def test_the_bundle_holds_the_peers_step(name: str, made: Callable[[str], Made]) -> None:
    one = made(name)
    (stage,) = one.bundle.manifest.stages
    timestep, sigma = SETTINGS[name]
    assert (stage.timestep, stage.factor, stage.a) == (timestep, 4, 1)
    assert stage.b == pytest.approx(-sigma)
    assert stage.encoder == "vae_encoder_stage1"
    assert one.bundle.manifest.provenance["adapters"]["stage1"]["layout"] == name
    merged = [m.subject for m in one.report.measurements if m.gate.name == "merged_vs_lora"]
    assert merged == ["stage1", "vae_encoder_stage1"]


def test_the_timestep_of_omgsr_f_is_that_of_its_schedule() -> None:
    assert flow_peers.omgsr_sigma(244) == pytest.approx(0.505, abs=2e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_another_base_is_refused(name: str, made: Callable[[str], Made], tmp_path: Path) -> None:
    other = make_base("sana", tmp_path / "other")
    with pytest.raises(BundleError, match=f"a {name} adapter is for a .*, but other has a Sana") as caught:
        attach_stage(Generator.load(other, "a"), made(name).adapter, 1)
    assert caught.value.exit_code == 5
    assert "which these adapters were trained on" in str(caught.value.hint)


def test_embeddings_may_lie_where_tsd_sr_has_them(made: Callable[[str], Made], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint" / "tsdsr"
    shutil.copytree(made("tsd-sr").adapter, folder)
    beside = read_adapter(folder).prompt
    (tmp_path / "dataset" / "default").mkdir(parents=True)
    for name in ("prompt_embeds.pt", "pool_embeds.pt"):
        shutil.move(folder / name, tmp_path / "dataset" / "default" / name)
    found = read_adapter(folder).prompt
    assert all(torch.equal(found[key], value) for key, value in beside.items())
    shutil.rmtree(tmp_path / "dataset")
    with pytest.raises(BundleError, match=r"its prompt \(prompt_embeds.pt\) is neither here nor in"):
        read_adapter(folder)


def rewritten(folder: Path, name: str, content: object) -> Path:
    torch.save(content, folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pool_embeds.pt", {"pooled": torch.zeros(1, 16)}, "no embedding, but a dict"),
        ("pool_embeds.pt", torch.zeros(1, 8), "pooled_prompt_embeds has shape"),
        ("prompt_embeds.pt", torch.zeros(9, 32), "the prompt embedding has shape"),
        ("prompt_embeds.pt", "trap", "refused, for it holds more than weights"),
    ],
)
def test_embeddings_that_are_none(
    name: str, content: object, message: str, made: Callable[[str], Made], tmp_path: Path
) -> None:
    one, trace = made("tsd-sr"), tmp_path / "it-ran"
    folder = shutil.copytree(one.adapter, tmp_path / "adapter")
    torch.save(Trap(trace) if content == "trap" else content, folder / name)
    with pytest.raises(BundleError, match=message) as caught:
        attach_stage(Generator.load(one.peer.base, "a"), folder, 1)
    assert caught.value.exit_code == 5
    assert not trace.exists()


@pytest.mark.parametrize("file", ["transformer.safetensors", "vae.safetensors"])
def test_damaged_weights_of_tsd_sr(file: str, made: Callable[[str], Made], tmp_path: Path) -> None:
    folder = shutil.copytree(made("tsd-sr").adapter, tmp_path / "adapter")
    (folder / file).write_bytes((folder / file).read_bytes()[:-100])
    with pytest.raises(BundleError, match=f"{file}: the file cannot be read"):
        read_adapter(folder)


def test_an_omgsr_f_folder_without_its_encoder(made: Callable[[str], Made], tmp_path: Path) -> None:
    folder = shutil.copytree(made("omgsr-f").adapter, tmp_path / "adapter")
    shutil.rmtree(folder / "vae_encoder_adapter")
    with pytest.raises(BundleError, match=r"vae_encoder_adapter.*cannot be read: No such file"):
        read_adapter(folder)
