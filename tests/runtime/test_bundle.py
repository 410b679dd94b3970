from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.errors import BundleError
from tudsr_runtime.files import file_sha256
from tudsr_runtime.manifest import MIN_OVERLAP, Manifest, read_plans
from tudsr_runtime.tiling import axis

MakeBundle = Callable[..., Path]
needs_links = pytest.mark.skipif(os.name == "nt", reason="creating links needs a privilege on Windows")


@pytest.fixture
def folder(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "b", tile=64)


@pytest.fixture(scope="module")
def document(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = make_bundle(tmp_path_factory.mktemp("m") / "b", tile=64)
    parsed: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return parsed


def changed(document: dict[str, Any], keys: str, value: object) -> str:
    """The manifest's text with the value at the dotted path replaced."""
    document = copy.deepcopy(document)
    *parents, last = [int(key) if key.isdigit() else key for key in keys.split(".")]
    place: Any = document
    for key in parents:
        place = place[key]
    place[last] = value
    return json.dumps(document)


def test_json_round_trip_is_exact(folder: Path) -> None:
    text = (folder / "bundle.json").read_text(encoding="utf-8")
    manifest = Manifest.from_json(text)
    assert manifest.to_json() == text
    assert text.endswith("}\n")
    assert list(json.loads(text))[:3] == ["schema_version", "name", "tudsr_version"]


def test_open_bundle_knows_itself(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.sha256 == hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()
    assert [stage.factor for stage in bundle.manifest.stages] == [4, 2]
    variant = bundle.variant("unet_stage1")
    assert bundle.path(variant) == folder / "unet_stage1" / "model.onnx"
    assert file_sha256(bundle.path(variant)) == variant.files[0].sha256


def test_golden_tile_is_listed_and_checked(folder: Path, document: dict[str, Any]) -> None:
    files = []
    for name in ("golden/input.png", "golden/stage1.f32", "golden/stage2.f32"):
        (folder / "golden").mkdir(exist_ok=True)
        (folder / name).write_bytes(b"content")
        files.append({"path": name, "sha256": file_sha256(folder / name), "bytes": 7})
    listed = {"input": files[0], "outputs": files[1:]}
    (folder / "bundle.json").write_text(changed(document, "golden", listed), encoding="utf-8")
    golden = open_bundle(folder).manifest.golden
    assert golden is not None
    assert [file.path for file in golden.outputs] == ["golden/stage1.f32", "golden/stage2.f32"]
    (folder / "golden" / "stage2.f32").write_bytes(b"CONTENT")
    with pytest.raises(BundleError, match=r"stage2\.f32 is damaged: sha256"):
        open_bundle(folder)
    listed = {"input": files[0], "outputs": files[1:2]}
    (folder / "bundle.json").write_text(changed(document, "golden", listed), encoding="utf-8")
    with pytest.raises(BundleError, match="golden has 1 outputs for 2 stages"):
        open_bundle(folder)


PLAN = {"scale": 2.0, "factors": "2x-", "psnr_db": 31.5, "ssim": 0.91, "texture": 0.8}


def test_measured_plans_are_kept_and_a_bundle_may_have_none(document: dict[str, Any]) -> None:
    assert "plans" not in document
    for plans in ([PLAN], [PLAN, PLAN | {"factors": "-x2"}, PLAN | {"scale": 4.0, "factors": "2x2"}]):
        text = changed(document, "plans", plans)
        manifest = Manifest.from_json(text)
        assert json.loads(manifest.to_json()) == json.loads(text)
        assert [plan.factors for plan in manifest.plans] == [plan["factors"] for plan in plans]
        assert read_plans(json.dumps(plans), 2) == manifest.plans
    assert "plans" not in json.loads(Manifest.from_json(changed(document, "plans", [])).to_json())


HOSTILE_PLANS = [
    (None, "plans must be a list"),
    ({}, "plans must be a list"),
    ([5], r"plans\[0\] must be an object"),
    ([{}], r"missing key 'plans\[0\]"),
    ([PLAN | {"surprise": 1}], r"unknown key 'plans\[0\].surprise'"),
    ([PLAN | {"factors": 2}], r"plans\[0\].factors must be a string"),
    *(
        ([PLAN | {"factors": factors}], r"plans\[0\]: factors must be two whole numbers")
        for factors in ("", "2", "-x-", "0x2", "33x-", "9x9", "2x2x2", "2X-", "٢x-", "9" * 10**5, "2x-\n")
    ),
    *(
        ([PLAN | {"scale": scale}], r"plans\[0\]: scale must be 1 to 32")
        for scale in (0, 0.99, -2, 33, 1e300)
    ),
    ([PLAN | {"scale": "2"}], r"plans\[0\].scale must be a finite number"),
    ([PLAN | {"scale": 10**400}], r"plans\[0\].scale must be a finite number"),
    ([PLAN | {"scale": 2.01}], r"plans\[0\]: factors 2x- do not reach scale 2.01"),
    ([PLAN | {"psnr_db": -1}], "psnr_db must be 0 to 200"),
    ([PLAN | {"ssim": 1.1}], "ssim must be -1 to 1"),
    ([PLAN | {"texture": -0.1}], "texture must not be negative"),
    ([PLAN, PLAN], "plan 2x- for scale 2 is listed twice"),
    ([PLAN | {"scale": 1 + n / 100} for n in range(65)], "there are 65 plans, at most 64"),
]


@pytest.mark.parametrize(("plans", "message"), HOSTILE_PLANS)
def test_hostile_plans_are_refused(document: dict[str, Any], plans: object, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        Manifest.from_json(changed(document, "plans", plans))
    assert caught.value.exit_code == 5
    assert len(str(caught.value)) < 200
    with pytest.raises(BundleError):
        read_plans(json.dumps(plans), 2)


def test_plans_need_the_stages_that_they_name(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "one", tile=64, stages=1)
    document = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    assert Manifest.from_json(changed(document, "plans", [PLAN])).plans
    for factors in ("-x2", "1x2"):
        with pytest.raises(BundleError, match=f"plan {factors} for scale 2 needs stage 2"):
            Manifest.from_json(changed(document, "plans", [PLAN | {"factors": factors}]))


def test_variant_is_chosen_by_what_is_asked(document: dict[str, Any]) -> None:
    component = copy.deepcopy(document["components"]["unet_stage1"])
    half = copy.deepcopy(component["variants"][0])
    half["precision"] = "fp16"
    component["variants"].append(half)
    manifest = Manifest.from_json(changed(document, "components.unet_stage1", component))
    bundle = Bundle(Path(), manifest, "")
    assert bundle.variant("unet_stage1").precision == "fp32"
    assert bundle.variant("unet_stage1", precision="fp16").precision == "fp16"
    with pytest.raises(BundleError, match="no variant with precision bf16, batch 1, tile 64; it has: fp32"):
        bundle.variant("unet_stage1", precision="bf16")
    with pytest.raises(BundleError, match="batch 4"):
        bundle.variant("unet_stage1", batch=4)
    with pytest.raises(BundleError, match="no component 'unet'; it has vae_encoder"):
        bundle.variant("unet")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("schema_version", 3, "schema_version is 3, this tudsr reads 1 and 2"),
        ("schema_version", 2, "stage stage1 lacks 'a'"),
        ("schema_version", True, "schema_version"),
        ("surprise", 1, "unknown key 'surprise'"),
        ("stages.0.surprise", 1, r"unknown key 'stages\[0\].surprise'"),
        ("name", "../nano", "is not a plain name"),
        ("tile", "64", "tile must be an integer"),
        ("overlap", 16, "overlap must be 17 to 32 px, not 16"),
        ("components.vae_encoder.variants.0.macs", -1, r"macs must be 0 to 10\^18"),
        pytest.param("components.vae_encoder.variants.0.macs", 10**400, r"0 to 10\^18", id="endless"),
        ("tile", 66, "tile 66 is no multiple of 4"),
        ("tile", 128, "vae_encoder: tile is 64, the bundle's is 128"),
        ("latent.channels", 4, r"vae_encoder: y has shape \[1, 48, 16, 16\], expected \[1, 4, 16, 16\]"),
        ("latent.scaling_factor", 0, "latent: scaling_factor must be positive"),
        ("latent.scaling_factor", True, "latent.scaling_factor must be a finite number"),
        ("precision", "int8", "precision must be one of fp32, fp16, bf16"),
        ("stages", [], "one or two stages, not 0"),
        ("stages.1.alpha_cumprod", 1.5, r"stages\[1\]: alpha_cumprod must be in \(0, 1\]"),
        ("stages.1.unet", "unet_stage9", "names the component 'unet_stage9'"),
        ("stages.1.unet", "unet_stage1", r"no stage uses \['unet_stage2'\]"),
        ("stages.1.unet", "vae_decoder", "vae_decoder: y has shape"),
        ("components.vae_decoder.variants", [], "variants must not be empty"),
        ("components.vae_decoder.variants.0.model", "x.onnx", "'x.onnx' is not among its files"),
        ("components.vae_decoder.variants.0.inputs", [], "one input and one output"),
        ("components.vae_decoder.variants.0.inputs.0.dtype", "bfloat16", "dtype must be one of"),
        ("components.vae_decoder.variants.0.inputs.0.shape", [1, 48, 16, -1], "shape must be positive"),
        ("components.vae_decoder.variants.0.files.0.sha256", "ab", "64 lower-case hexadecimal"),
        ("components.vae_decoder.variants.0.files.0.bytes", -1, "bytes must not be negative"),
        ("provenance", [], "provenance must be an object"),
        ("golden", "x", "golden must be an object"),
    ],
)
def test_misfit_manifest_is_refused_by_key(
    document: dict[str, Any], keys: str, value: object, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(changed(document, keys, value))


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/passwd",
        "a/b/c",
        "a//b",
        "a/..",
        ".hidden",
        "a\\b",
        "",
        "a/",
        "C:x",
        "a\n",
        "é",
        "a" * 101,
    ],
)
def test_path_that_could_leave_the_folder_is_refused(document: dict[str, Any], path: str) -> None:
    with pytest.raises(BundleError, match="must be a plain name"):
        Manifest.from_json(changed(document, "components.vae_decoder.variants.0.files.0.path", path))


def test_missing_key_is_named(document: dict[str, Any]) -> None:
    for key in document.keys() - {"schema_version"}:
        shorter = {name: value for name, value in document.items() if name != key}
        with pytest.raises(BundleError, match=f"missing key '{key}'"):
            Manifest.from_json(json.dumps(shorter))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": 1, "name": 2}', "duplicate key 'name'"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "not valid JSON"),
        ("1" * 5000, "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "the manifest must be an object"),
    ],
)
def test_text_that_is_no_manifest_is_refused(text: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(text)


def places(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*prefix, key)
        yield from places(item, (*prefix, key))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_damage_is_either_harmless_or_a_bundle_error(
    document: dict[str, Any], data: st.DataObject
) -> None:
    where = ".".join(map(str, data.draw(st.sampled_from(sorted(places(document), key=str)))))
    with contextlib.suppress(BundleError):
        Manifest.from_json(changed(document, where, data.draw(json_values)))


def test_damage_to_a_file_is_found(folder: Path) -> None:
    graph = folder / "vae_decoder" / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"model\.onnx is damaged: sha256 .* the manifest says"):
        open_bundle(folder)
    open_bundle(folder, verify=False)
    graph.write_bytes(whole[:-1])
    with pytest.raises(
        BundleError, match=rf"is damaged: {len(whole) - 1} bytes, the manifest says {len(whole)}"
    ):
        open_bundle(folder, verify=False)


def test_missing_and_unlisted_files_are_named(folder: Path) -> None:
    (folder / "README.md").touch()
    open_bundle(folder)
    (folder / "vae_decoder" / "weights.bin").touch()
    with pytest.raises(BundleError, match=r"does not list: 'vae_decoder/weights\.bin'"):
        open_bundle(folder)
    (folder / "vae_decoder" / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks files .*: 'vae_decoder/model\.onnx'"):
        open_bundle(folder)


def test_folders_do_not_nest(folder: Path) -> None:
    (folder / "vae_decoder" / "more").mkdir()
    with pytest.raises(BundleError, match="more does not belong in a bundle"):
        open_bundle(folder)


@needs_links
@pytest.mark.parametrize("name", ["vae_decoder/model.onnx", "vae_decoder", "bundle.json"])
def test_links_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"is a link|is not a plain file"):
        open_bundle(folder)


def test_oversized_or_unreadable_manifest_is_refused(folder: Path) -> None:
    manifest = folder / "bundle.json"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text + " " * (1 << 20), encoding="utf-8")
    with pytest.raises(BundleError, match="larger than 1048576 bytes"):
        open_bundle(folder)
    manifest.write_bytes(b"\xff\xfe")
    with pytest.raises(BundleError, match="is not UTF-8 text"):
        open_bundle(folder)
    manifest.unlink()
    with pytest.raises(BundleError, match=r"it has no bundle\.json"):
        open_bundle(folder)


def test_unknown_bundle_is_named_with_what_there_is() -> None:
    with pytest.raises(BundleError, match="no bundle 'nanno'") as caught:
        open_bundle("nanno")
    assert "nano" in (caught.value.hint or "")


def test_the_least_overlap_of_a_manifest_is_that_of_tiles() -> None:
    assert MIN_OVERLAP == axis.MIN_OVERLAP
