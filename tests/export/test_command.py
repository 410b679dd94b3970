"""`tudsr export` from its arguments to its exit code."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model

from tests.export.conftest import TILE, make_adapter
from tudsr_export import command, part
from tudsr_export import export as whole_export
from tudsr_export.options import ExportOptions
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.bundle_command import bundle_info
from tudsr_runtime.errors import BundleError, DeviceError, OutputError, UsageError
from tudsr_runtime.upscaler import Upscaler


def run(base: Path, stage1: Path | None, stage2: Path | None, output: Path, **options: Any) -> None:
    """With tiles of a few px: those of 512 take minutes."""
    command.run(ExportOptions(output, base, stage1, stage2, **options), tile=TILE)


def test_the_path_is_the_only_thing_on_stdout(nano, tmp_path, capsys):
    output = tmp_path / "my-bundle"
    run(nano.base, nano.stage1, nano.stage2, output, licence="Apache-2.0")
    captured = capsys.readouterr()
    assert captured.out == f"{output}\n"
    assert "stage1: tudsr adapter, timestep 137, factor 4 (as the adapter's record says)" in captured.err
    assert "half_vs_float32" in captured.err
    manifest = open_bundle(output).manifest
    assert (manifest.name, manifest.precision) == ("my-bundle", "fp16")
    assert len(manifest.stages) == 2


def test_no_library_draws_bars_on_stderr(stable_diffusion, tmp_path, capfd):
    """Those of loading are gone before anybody has read them, and fill a log."""
    source = stable_diffusion
    adapter = shutil.copytree(source.stage1, tmp_path / "adapter")
    (adapter / "tudsr.json").write_text(
        json.dumps(json.loads((adapter / "tudsr.json").read_text()) | {"base_sha256": "0" * 64})
    )
    refuse(BundleError, "trained on base 000000000000", source.base, adapter, None, tmp_path / "out")
    shown = capfd.readouterr().err
    assert "base, epsilon" in shown
    assert "\r" not in shown
    assert "Loading" not in shown


def test_the_model_card_begins_with_what_the_author_says(nano, tmp_path):
    about = tmp_path / "about.md"
    about.write_text("It restores; it does not imagine.\n")
    run(nano.base, nano.stage1, None, tmp_path / "new" / "out", precision="fp32", about=about)
    card = (tmp_path / "new" / "out" / "README.md").read_text()
    assert 0 < card.index("It restores; it does not imagine.") < card.index("## Stages")


PLAN = {"scale": 8.0, "factors": "8x-", "psnr_db": 25.0, "ssim": 0.7, "texture": 0.5}


def test_measured_plans_are_in_the_bundle_and_its_card_and_do_not_change_the_gates(nano, tmp_path, capsys):
    plans = tmp_path / "plans.json"
    plans.write_text(json.dumps([PLAN]))
    run(nano.base, nano.stage1, nano.stage2, tmp_path / "out", precision="fp32", plans=plans)
    bundle = open_bundle(tmp_path / "out")
    assert [dataclasses.asdict(plan) for plan in bundle.manifest.plans] == [PLAN]
    assert "| x8 | 8x- | 25.00 dB | 0.7000 | 0.500 |" in (bundle.folder / "README.md").read_text()
    assert bundle.manifest.numerics["runtime_vs_torch"]["photograph, all stages"]["value"] > 60
    with Upscaler(bundle, backend="onnxruntime", overlap=24) as upscaler:
        assert upscaler.plan(20, 20, 8).notation == "8x-"
    bundle_info(str(bundle.folder), as_json=False)
    assert "good up to x8:    factors 8x- (measured)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "plans.json: "),
        (json.dumps({}), "the list of plans must be a list"),
        (json.dumps([PLAN | {"factors": "4x-"}]), "factors 4x- do not reach scale 8"),
        (json.dumps([PLAN | {"factors": "4x2"}]), "needs stage 2, the bundle has 1 stage"),
        (json.dumps([PLAN | {"factors": 8}]), r"\[0\].factors must be a string"),
    ],
)
def test_plans_that_do_not_fit(text, message, nano, tmp_path):
    plans = tmp_path / "plans.json"
    plans.write_text(text)
    refuse(UsageError, message, nano.base, nano.stage1, None, tmp_path / "out", plans=plans)


def test_one_adapter_without_a_record_takes_the_papers_numbers(nano, tmp_path, capsys):
    adapter = make_adapter(nano.base, tmp_path / "adapter", 2)
    (adapter / "tudsr.json").unlink()
    run(nano.base, None, adapter, tmp_path / "out", precision="fp32", name="other")
    (stage,) = open_bundle(tmp_path / "out").manifest.stages
    assert (stage.name, stage.timestep, stage.factor) == ("stage2", 50, 2)
    err = capsys.readouterr().err
    assert "timestep 50, factor 2 (the paper's; the adapter has no record)" in err
    assert "licence of the weights: unspecified" in err


def refuse(error: type[Exception], message: str, base: Path, stage1, stage2, output: Path, **options) -> None:
    before = sorted(output.parent.iterdir())
    with pytest.raises(error, match=message):
        run(base, stage1, stage2, output, **options)
    assert sorted(output.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "fp16 or fp32, not 'int8'"),
        ({"timesteps": "200,50"}, "expected 1 number, one a stage"),
        ({"timesteps": "early"}, "expected 1 number"),
        ({"tile": (32,)}, "64 to 4096 px, not 32"),
        ({"tile": (66,)}, "tile 66 is no multiple of 8"),
        ({"name": "no/slash"}, "cannot name a bundle"),
        ({"about": Path("nowhere.md")}, "--about nowhere.md: not a readable text file"),
        ({"plans": Path("nowhere.json")}, "--plans nowhere.json: not a readable text file"),
    ],
)
def test_options_that_cannot_be_meant(options, message, nano, tmp_path):
    refuse(UsageError, message, nano.base, nano.stage1, None, tmp_path / "out", **options)


def test_no_adapter_is_nothing_to_export(nano, tmp_path):
    refuse(UsageError, "nothing to export", nano.base, None, None, tmp_path / "out")


def test_a_base_that_is_not_there(nano, tmp_path):
    refuse(BundleError, "no diffusers base", tmp_path / "none", nano.stage1, None, tmp_path / "out")


def test_an_adapter_that_is_not_there(nano, tmp_path):
    refuse(BundleError, "no adapter here", nano.base, tmp_path / "none", None, tmp_path / "out")


def test_an_adapter_of_another_base(nano, tmp_path):
    adapter = make_adapter(nano.base, tmp_path / "adapter", 1, base_sha256="0" * 64)
    refuse(BundleError, "trained on base 000000000000", nano.base, adapter, None, tmp_path / "out")


def test_an_adapter_whose_weights_do_not_fit(nano, stable_diffusion, tmp_path):
    adapter = make_adapter(stable_diffusion.base, tmp_path / "adapter", 1)
    (adapter / "tudsr.json").unlink()
    refuse(BundleError, "the prompt embedding has shape", nano.base, adapter, None, tmp_path / "out")
    (adapter / "prompt_embeds.safetensors").unlink()
    refuse(BundleError, "does not fit the base", nano.base, adapter, None, tmp_path / "out")


def test_an_adapter_of_the_other_stage(nano, tmp_path):
    refuse(BundleError, "trained for stage 2", nano.base, nano.stage2, None, tmp_path / "out")


def test_an_adapter_for_a_timestep_that_the_base_lacks(nano, tmp_path):
    adapter = make_adapter(nano.base, tmp_path / "adapter", 1, timestep=1000)
    refuse(BundleError, "timestep 1000 is outside", nano.base, adapter, None, tmp_path / "out")


def test_a_note_where_the_prompt_embedding_is_another(nano, tmp_path, capsys):
    adapter = make_adapter(nano.base, tmp_path / "adapter", 1, prompt_sha256="0" * 64)
    run(nano.base, adapter, None, tmp_path / "out", precision="fp32")
    assert "stage1: the prompt embedding differs" in capsys.readouterr().err


def test_an_existing_folder_is_kept_unless_it_may_be_overwritten(nano, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("precious")
    refuse(OutputError, "already exists", nano.base, nano.stage1, None, output)
    refuse(
        OutputError,
        "no earlier result",
        nano.base,
        nano.stage1,
        None,
        output,
        precision="fp32",
        overwrite=True,
    )
    assert (output / "mine.txt").read_text() == "precious"
    (output / "bundle.json").write_text("{}")
    run(nano.base, nano.stage1, None, output, precision="fp32", overwrite=True)
    assert len(open_bundle(output).manifest.stages) == 1


def test_a_failed_export_keeps_the_bundle_that_it_should_replace(nano, tmp_path, monkeypatch):
    output = tmp_path / "out"
    output.mkdir()
    (output / "bundle.json").write_text("precious")
    monkeypatch.setattr(whole_export, "merge_adapter", lambda unet: unet.unload_lora())
    refuse(Exception, "merged_vs_lora", nano.base, nano.stage1, None, output, overwrite=True)
    assert (output / "bundle.json").read_text() == "precious"


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(143), SystemExit),
    ],
)
def test_nothing_is_left_of_an_export_that_ends_half_way(failure, raised, nano, tmp_path, monkeypatch):
    def export_onnx(module, folder, *rest, **options):
        del module, rest, options
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"half")
        raise failure

    monkeypatch.setattr(part, "export_onnx", export_onnx)
    with pytest.raises(raised) as caught:
        run(nano.base, nano.stage1, None, tmp_path / "out", precision="fp32")
    assert not list(tmp_path.iterdir())
    if raised is OutputError:
        assert caught.value.exit_code == 8
        assert "No space left" in str(caught.value)


def test_a_base_that_predicts_something_else(nano, tmp_path):
    other = shutil.copytree(nano.base, tmp_path / "base")
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', '"noise"'))
    refuse(BundleError, "predicts 'noise'", other, nano.stage1, None, tmp_path / "out")


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "tudsr.json", "adapter_config.json"])
def test_a_damaged_adapter(file, nano, tmp_path):
    adapter = shutil.copytree(nano.stage1, tmp_path / "adapter")
    (adapter / file).write_bytes((adapter / file).read_bytes()[:-30])
    refuse(BundleError, "cannot be read|not a record", nano.base, adapter, None, tmp_path / "out")


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json"])
def test_a_damaged_base(file, nano, tmp_path):
    base = shutil.copytree(nano.base, tmp_path / "base")
    (base / file).write_bytes((base / file).read_bytes()[:-30])
    refuse(BundleError, "cannot be read", base, nano.stage1, None, tmp_path / "out")


def test_what_is_asked_for_besides_is_missing_before_the_export_begins(nano, tmp_path, monkeypatch):
    """Not minutes later."""

    def absent(name: str) -> None:
        raise DeviceError(f"{name} cannot be imported")

    monkeypatch.setattr(command, "open_library", absent)
    with pytest.raises(DeviceError, match="tensorrt-rtx cannot be imported"):
        run(nano.base, nano.stage1, None, tmp_path / "out", engine=("tensorrt-rtx",), target="sm89")
    (tmp_path / "models").mkdir()
    with pytest.raises(OutputError, match="models exists"):
        run(nano.base, nano.stage1, None, tmp_path / "out", triton=tmp_path / "models")
    assert not (tmp_path / "out").exists()


def test_a_model_repository_is_written_with_the_bundle(nano, tmp_path, capsys):
    run(nano.base, nano.stage1, None, tmp_path / "out", precision="fp32", triton=tmp_path / "models")
    names = {one.name for one in (tmp_path / "models").iterdir()}
    assert "out_unet_stage1" in names
    printed = capsys.readouterr().out.split()
    assert printed[0] == str(tmp_path / "out")
    assert {Path(path).name for path in printed[1:]} == names


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs the [rtx] extra: pip install tensorrt-rtx"
)
def test_engines_are_built_with_the_bundle(nano, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path / "cache"))
    run(nano.base, nano.stage1, None, tmp_path / "out", engine=("tensorrt-rtx",), target="sm89")
    bundle, engines = capsys.readouterr().out.split()
    assert bundle == str(tmp_path / "out")
    assert {one.suffix for one in Path(engines).iterdir()} >= {".plan", ".json"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["to_q"], "modules_to_save": ["conv_out"]}, "conv_out was trained whole"),
        ({"target_modules": ["to_q"], "lora_bias": True}, "cannot be merged"),
    ],
)
def test_an_adapter_that_is_more_than_a_lora(nano, tmp_path, settings, message):
    unet = UNet2DConditionModel.from_pretrained(nano.base / "unet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of a bias that cannot be merged
        get_peft_model(unet, LoraConfig(r=4, **settings)).save_pretrained(tmp_path / "adapter")
        refuse(BundleError, message, nano.base, tmp_path / "adapter", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
