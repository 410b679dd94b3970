"""Adapters as other projects save them, against those projects' own way of using them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export import peers, reference
from tests.export.conftest import TILE, Source, export, make_stable_diffusion
from tests.export.test_bundle_equals_generator import picture, run_bundle
from tudsr_export.graphs import UnetStage, VaeEncoder
from tudsr_export.layouts import read_adapter
from tudsr_export.merge import attach_stage, merge_adapter
from tudsr_export.plan import ExportPlan
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.errors import BundleError
from tudsr_train.generator import Generator

MAKERS: dict[str, Callable[[Path, Path], peers.Peer]] = {
    "osediff.pkl": peers.osediff,
    "pisa_sr.pkl": peers.pisa_sr,
    "omgsr": peers.omgsr,
    "diffusers": peers.diffusers_lora,
    "diffusers-pipeline": lambda base, folder: peers.diffusers_lora(base, folder, "unet."),
}


@pytest.fixture
def peer(stable_diffusion: Source, tmp_path: Path) -> Callable[[str], tuple[Path, peers.Peer]]:
    """The checkpoint of that name, and the peer that it was saved from."""

    def get(name: str) -> tuple[Path, peers.Peer]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what peft says of several adapters, and of saving without a hub
            return tmp_path / name, MAKERS[name](stable_diffusion.base, tmp_path / name)

    return get


@pytest.mark.parametrize("name", MAKERS)
@torch.no_grad()
def test_what_is_exported_restores_like_the_peer(name, peer, stable_diffusion):
    origin, theirs = peer(name)
    expected = theirs.restore(
        stable_diffusion.base, reference.prompt_embeds(stable_diffusion.base), picture()
    )
    generator, settings = attach_stage(Generator.load(stable_diffusion.base).eval(), origin, 1)
    assert settings.timestep == theirs.timestep
    for model in (generator.unet, generator.vae):
        merge_adapter(model)
        assert not [key for key in model.state_dict() if "lora" in key or "base_layer" in key]
    z_L = VaeEncoder(generator.vae)(picture())
    z_H = UnetStage(generator, settings.timestep, settings.formula).eval()(z_L)
    actual = generator.decode(z_H).clamp(-1, 1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)
    plain = reference.to_image(stable_diffusion.base, reference.to_latent(stable_diffusion.base, picture()))
    assert (expected - plain).abs().max() > 0.05


def test_a_peer_becomes_a_bundle_with_its_own_encoder(peer, stable_diffusion, tmp_path):
    origin, theirs = peer("osediff.pkl")
    plan = ExportPlan(
        base=stable_diffusion.base,
        adapters={1: origin},
        output=tmp_path / "out",
        precision="fp32",
        name="osediff",
        licence="Apache-2.0",
        tile=TILE,
    )
    report = export(plan)
    bundle = open_bundle(tmp_path / "out")
    (stage,) = bundle.manifest.stages
    assert (stage.timestep, stage.encoder) == (999, "vae_encoder_stage1")
    assert set(bundle.manifest.components) == {"vae_encoder_stage1", "unet_stage1", "vae_decoder"}
    assert bundle.manifest.provenance["adapters"]["stage1"]["layout"] == "osediff"
    merged = [m.subject for m in report.measurements if m.gate.name == "merged_vs_lora"]
    assert merged == ["stage1", "vae_encoder_stage1"]
    expected = theirs.restore(
        stable_diffusion.base, reference.prompt_embeds(stable_diffusion.base), picture()
    )
    torch.testing.assert_close(run_bundle(bundle, picture()), expected, rtol=0, atol=2e-4)


def test_a_prompt_can_be_asked_for(peer, stable_diffusion):
    origin, _ = peer("omgsr")
    base = Generator.load(stable_diffusion.base).eval()
    empty, _ = attach_stage(base, origin, 1)
    asked, settings = attach_stage(base, origin, 1, prompt="a b")
    torch.testing.assert_close(empty.prompt_embeds, base.prompt_embeds)
    assert not torch.allclose(asked.prompt_embeds, base.prompt_embeds, atol=1e-3)
    assert settings.used_prompt_sha256 != settings.prompt_sha256


class Trap:
    """What a hostile checkpoint may hold: unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_wants_to_run_code_is_refused_and_not_run(tmp_path):
    trace, file = tmp_path / "it-ran", tmp_path / "evil.pkl"
    torch.save({"rank_unet": 4, "state_dict_unet": Trap(trace)}, file)
    with pytest.raises(BundleError, match="refused, for it holds more than weights"):
        read_adapter(file)
    file.write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(BundleError, match=r"refused|cannot be read"):
        read_adapter(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[: len(data) // 2], "cannot be read"),
        (lambda _: b"", "cannot be read|refused"),
        (lambda _: b"not a checkpoint", "cannot be read|refused"),
    ],
)
def test_a_damaged_checkpoint(change, message, peer):
    file, _ = peer("pisa_sr.pkl")
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(BundleError, match=message) as caught:
        read_adapter(file)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": 1}, "neither OSEDiff's nor PiSA-SR's"),
        ([1, 2], "but a list"),
        ({"unet_lora_encoder_modules": [], "rank_unet": 4}, "the checkpoint is incomplete: KeyError"),
    ],
)
def test_a_checkpoint_of_something_else(content, message, tmp_path):
    torch.save(content, tmp_path / "other.pkl")
    with pytest.raises(BundleError, match=message):
        read_adapter(tmp_path / "other.pkl")


@pytest.mark.parametrize("name", ["none", "none.pkl", "readme.txt"])
def test_no_adapter_there(name, tmp_path):
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(BundleError, match=r"no adapter here|not an adapter's file"):
        read_adapter(tmp_path / name)


def damage(file: Path, how: str) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-100] if how == "truncated" else b"\xff" * 8 + data[8:])


@pytest.mark.parametrize("how", ["truncated", "tampered"])
@pytest.mark.parametrize("name", ["omgsr", "diffusers"])
def test_damaged_safetensors(name, how, peer):
    origin, _ = peer(name)
    damage(next(origin.rglob("*.safetensors")), how)
    with pytest.raises(BundleError, match="cannot be read"):
        read_adapter(origin)


def test_an_omgsr_folder_without_its_encoder(peer):
    origin, _ = peer("omgsr")
    for file in (origin / "vae_encoder_lora_adapter").iterdir():
        file.unlink()
    with pytest.raises(BundleError, match=r"vae_encoder_lora_adapter.*cannot be read: No such file"):
        read_adapter(origin)


def test_a_lora_of_the_text_encoder_is_refused(peer):
    origin, _ = peer("diffusers-pipeline")
    file = origin / "pytorch_lora_weights.safetensors"
    weights = load_file(file)
    key = next(iter(weights))
    save_file({key.replace("unet.", "text_encoder."): weights[key].clone(), **weights}, file)
    with pytest.raises(BundleError, match="text encoder"):
        read_adapter(file)


def test_an_adapter_for_another_base(peer, nano):
    origin, _ = peer("pisa_sr.pkl")
    with pytest.raises(BundleError, match="does not fit the base") as caught:
        attach_stage(Generator.load(nano.base), origin, 1)
    assert caught.value.exit_code == 5


def test_an_adapter_of_another_rank_than_it_says(peer, stable_diffusion):
    origin, _ = peer("omgsr")
    config = origin / "unet_lora_adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 8', '"r": 16'))
    with pytest.raises(BundleError, match="does not fit the base"):
        attach_stage(Generator.load(stable_diffusion.base), origin, 1)


@pytest.mark.parametrize("name", ["osediff.pkl", "pisa_sr.pkl"])
def test_a_base_that_predicts_something_else(name, peer, tmp_path):
    origin, _ = peer(name)
    other = tmp_path / "other"
    other.mkdir()
    make_stable_diffusion(other, "v_prediction")
    with pytest.raises(BundleError, match="needs a base that predicts epsilon, but other predicts v_pred"):
        attach_stage(Generator.load(other), origin, 1)
