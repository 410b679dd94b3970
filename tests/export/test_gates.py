"""Each gate sees the fault that it is for, and then nothing is published."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export.conftest import Source, export, make_adapter, make_nano
from tudsr_export import export as whole_export
from tudsr_export import float32_islands as islands_of
from tudsr_export import fold, graphs
from tudsr_export import part as parts
from tudsr_export.gates import Gate, Measurement, Report
from tudsr_runtime.errors import NotFiniteError
from tudsr_train.generator import Generator


def assert_refused(source: Source, output: Path, gate: str, precision: str = "fp32") -> None:
    before = sorted(output.parent.iterdir())
    with pytest.raises(NotFiniteError, match=gate) as caught:
        export(source.plan(output, precision, stages=(1,)))
    assert caught.value.exit_code == 9
    assert sorted(output.parent.iterdir()) == before


def test_merged_gate_sees_a_weakened_adapter(nano, tmp_path, monkeypatch):
    def merge(unet):
        unet.fuse_lora(lora_scale=0.999)
        unet.unload_lora()

    monkeypatch.setattr(whole_export, "merge_adapter", merge)
    assert_refused(nano, tmp_path / "out", "merged_vs_lora, stage1")


def test_merged_gate_sees_a_lost_adapter(nano, tmp_path, monkeypatch):
    monkeypatch.setattr(whole_export, "merge_adapter", lambda unet: unet.unload_lora())
    assert_refused(nano, tmp_path / "out", "merged_vs_lora, stage1")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("bake_timestep", lambda unet, t: fold.bake_timestep(unet, t + 1)),
        ("bake_prompt", lambda unet, c: fold.bake_prompt(unet, c * 1.01)),
        ("bake_one_step", lambda unet, a, kind: fold.bake_one_step(unet, a * 0.9999, kind)),
    ],
)
def test_baked_gate_sees_a_wrong_constant_in_the_unet(name, fault, nano, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, name, fault)
    assert_refused(nano, tmp_path / "out", "baked_vs_merged, unet_stage1")


@pytest.mark.parametrize(
    ("name", "component"),
    [("scaled_quant_conv", "vae_encoder"), ("scaled_post_quant_conv", "vae_decoder")],
)
def test_baked_gate_sees_a_wrong_latent_scale(name, component, stable_diffusion, tmp_path, monkeypatch):
    scaled = getattr(fold, name)

    def fault(vae):
        conv = scaled(vae)
        conv.weight.data *= 1.0001
        return conv

    monkeypatch.setattr(graphs, name, fault)
    assert_refused(stable_diffusion, tmp_path / "out", f"baked_vs_merged, {component}")


def perturb_before_export(monkeypatch: pytest.MonkeyPatch, component: str, factor: float) -> None:
    exported = parts.export_onnx

    def export_onnx(module, folder, *rest, **options):
        if folder.name == component:
            module.unet.conv_out.weight.data *= factor
        return exported(module, folder, *rest, **options)

    monkeypatch.setattr(parts, "export_onnx", export_onnx)


def test_onnx_gate_sees_a_graph_that_is_not_the_module(nano, tmp_path, monkeypatch):
    perturb_before_export(monkeypatch, "unet_stage1", 1.01)
    assert_refused(nano, tmp_path / "out", "onnx_vs_torch, unet_stage1")


def test_onnx_gate_sees_a_wrong_half_graph(nano, tmp_path, monkeypatch):
    perturb_before_export(monkeypatch, "unet_stage1", 1.5)
    assert_refused(nano, tmp_path / "out", "onnx_vs_torch, unet_stage1", "fp16")


def test_half_gate_sees_weights_that_half_cannot_hold(nano, tmp_path, monkeypatch):
    def fault(module, islands):
        half = islands_of.to_half(module, islands)
        if hasattr(half, "unet"):
            half.unet.conv_in.weight.data[0] = 65504 * 2.0
        return half

    monkeypatch.setattr(parts, "to_half", fault)
    assert_refused(nano, tmp_path / "out", "half_vs_float32, stage1", "fp16")


def test_half_gate_sees_a_loss_of_precision(nano, tmp_path, monkeypatch):
    def fault(module, islands):
        half = islands_of.to_half(module, islands)
        for weight in half.parameters():
            weight.data = (weight.data * 16).round() / 16
        return half

    monkeypatch.setattr(parts, "to_half", fault)
    assert_refused(nano, tmp_path / "out", "half_vs_float32, stage1", "fp16")


def test_runtime_gate_sees_stages_in_the_wrong_order(nano, tmp_path, monkeypatch):
    """Every graph is right; only the manifest sends the pictures through them the wrong way round."""
    write = whole_export.write_bundle_files

    def swapped(folder, facts, numerics):
        write(folder, replace(facts, stages=facts.stages[::-1]), numerics)

    monkeypatch.setattr(whole_export, "write_bundle_files", swapped)
    with pytest.raises(NotFiniteError, match="runtime_vs_torch, photograph"):
        export(nano.plan(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_range_gate_sees_values_that_half_cannot_hold(tmp_path):
    def make_loud(folder: Path) -> None:
        make_nano(folder)
        generator = Generator.load(folder)
        generator.unet.conv_in.weight.data *= 2e5
        generator.unet.save_pretrained(folder / "unet")

    base = tmp_path / "base"
    base.mkdir()
    make_loud(base)
    source = Source(base, make_adapter(base, tmp_path / "stage1", 1), tmp_path / "none")
    assert_refused(source, tmp_path / "out", "fp16_range, unet_stage1", "fp16")
    export(source.plan(tmp_path / "out", "fp32", stages=(1,)))


def test_an_adapter_with_nan_is_named(nano, tmp_path):
    folder = make_adapter(nano.base, tmp_path / "adapter", 1)
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    key = sorted(weights)[0]
    weights[key].view(-1)[0] = math.nan
    save_file(weights, file, metadata={"format": "pt"})
    assert_refused(Source(nano.base, folder, folder), tmp_path / "out", "lora_A.*1 of .* values are NaN")


def test_a_nan_figure_passes_no_gate():
    with pytest.raises(NotFiniteError):
        Report().add(Measurement(Gate("g", 1.0), "s", math.nan))


def test_a_gate_without_limit_still_wants_finite_values():
    values = torch.tensor([1.0, math.inf])
    with pytest.raises(NotFiniteError, match="1 of 2"):
        Report().absolute(Gate("g", None), "s", values, torch.ones(2))


def test_figures_are_relative_to_the_largest_reference_value():
    report = Report()
    report.relative(Gate("g", None), "s", torch.tensor([4.0, 0.5]), torch.tensor([4.0, 0.0]))
    report.relative(Gate("g", None), "zero", torch.tensor([0.25]), torch.tensor([0.0]))
    assert [m.value for m in report.measurements] == [0.125, 0.25]


def test_a_picture_is_judged_by_its_psnr():
    report = Report()
    report.psnr(Gate("g", 20, least=True), "s", torch.tensor([0.2, 0, 0, 0]), torch.zeros(4), span=2)
    assert report.as_json()["g"] == {
        "limit": 20,
        "unit": "dB, at least",
        "s": {"value": 26.0, "largest": 0.2},
    }
    report.psnr(Gate("g", 20, least=True), "equal", torch.ones(4), torch.ones(4))
    with pytest.raises(NotFiniteError, match=r"g, low: 6\.0 is below the limit of 20\.0"):
        report.psnr(Gate("g", 20, least=True), "low", torch.ones(4), torch.zeros(4), span=2)
    with pytest.raises(NotFiniteError):
        report.psnr(Gate("g", 20, least=True), "flat", torch.ones(4), torch.zeros(4))


def test_psnr_is_against_the_range_of_the_reference():
    report = Report()
    report.absolute(Gate("g", None), "s", torch.tensor([0.02, 2.02]), torch.tensor([0.0, 2.0]))
    assert report.measurements[0].psnr_db == pytest.approx(40, abs=1e-3)
    report.absolute(Gate("g", None), "same", torch.ones(2), torch.ones(2))
    assert report.as_json()["g"]["same"] == {"value": 0.0}


def test_float32_rounds_in_proportion_to_large_values():
    gate, report = Gate("g", 1e-4), Report()
    report.absolute(gate, "an untrained decoder", torch.tensor([13.0, 1.15e-4]), torch.tensor([13.0, 0.0]))
    with pytest.raises(NotFiniteError, match="above the limit"):
        report.absolute(gate, "a picture", torch.tensor([1.0, 1.15e-4]), torch.tensor([1.0, 0.0]))
