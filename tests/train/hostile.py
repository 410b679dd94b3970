"""Configurations that nobody means, each with the exit code that `tudsr train` ends with."""

from __future__ import annotations

from pathlib import Path

DEEP = 200_000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
"""A few hundred bytes that would be printed as ten thousand million."""

FILES: dict[str, bytes] = {
    name: content.encode() if isinstance(content, str) else content
    for name, content in {
        "a key twice": "R: 64\nR: 128\n",
        "a key twice, below": "optimization: {lr: 1, lr: 2}\n",
        "a key twice in a mixture": "degradation: [{preset: nano, preset: clean}]\n",
        "nested lists": "data: " + "[" * DEEP + "]" * DEEP,
        "nested keys": "data: " + "{a: " * DEEP + "1" + "}" * DEEP,
        "nested blocks": "\n".join(" " * n + "a:" for n in range(3000)),
        "a bomb of aliases": BOMB + "R: *j\n",
        "a value that holds itself": "R: &a [*a]\n",
        "a key that is a list": "? [a, b]\n: 1\n",
        "a key that is itself": "? &a [*a]\n: 1\n",
        "UTF-16": "R: 64\n".encode("utf-16"),
        "an HTML page": "<!doctype html>\n<html><body>404: not here</body></html>\n",
        "bytes": bytes(range(256)),
        "control characters": "R: 64\x00\x1b[2J\n",
        "two documents": "R: 64\n---\nR: 128\n",
        "a tag of Python": "R: !!python/object/apply:os.system [id]\n",
        "a tag of something": "R: !x 1\n",
        "a date that is none": "out: 2001-99-99\n",
        "a number": "1\n",
        "a text": "x\n",
        "false": "false\n",
        "zero": "0\n",
        "an empty list": "[]\n",
        "too large": "#" * (2**20 + 1),
        "a preset that is a list": "degradation: {preset: [nano]}\n",
        "an empty mixture": "data: []\n",
        "a mixture of nothing": "data: [1, 2]\n",
        "a mixture without weight": "data: [{weight: 0}]\n",
    }.items()
}
"""Each is exit 10 (training configuration)."""

SETTINGS = [
    "=1", "a..b=1", ".=1", "R=", "R=[", "R=&a [*a]", "R=.nan", "R=64.5", "R=true", "R=1" + "0" * 400,
    "R=1000000", "seed=1e400", "out=[x]", "t1=-1", "M=[]", "M=[0]", "M=[3]", "M=[5, 2]", "M=[16]", "M=[64]",
    "M=[1" + "0" * 400 + "]", "M=[2.5]", "loss={mae: 0}", "loss={mae: .nan}", "loss={mae: 1e999}",
    "loss={mae: 1" + "0" * 400 + "}", "loss={mae: yes}", "optimization.lr=0", "optimization.lr=-1e-4",
    "optimization.lr=nan", "optimization.lr=inf", "optimization.lr=1" + "0" * 400, "optimization.eps=0",
    "optimization.max_grad_norm=0", "optimization.betas=[1, 1]", "optimization.steps=1" + "0" * 400,
    "optimization.batch_size=0", "optimization.accumulation=0", "optimization.save_every=0",
    "optimization.threads=1" + "0" * 30, "optimization.workers=1" + "0" * 30, "optimization.precision=fp8",
    "optimization.optimizer=sgd", "optimization.ema=1", "optimization.ema=nan", "optimization.device=tpu",
    "optimization.trackers=[x]", "lora.rank=0", "lora.rank=1000000000", "lora.vae_encoder_rank=-1",
    "lora.targets=all", "data.lanes=0", "data.lanes=-1", "data.corrupt_allowed=2",
    "data.corrupt_allowed=-0.1", "data.corrupt_allowed=nan", "data.small_allowed=1.5",
    "data.keep_decoded=-1", "data.count=0", "data.size=0", "data.seed=-1", "data.count=1000000000000",
    "data.size=1000000", "data.source=folders", "data.source=folder", "data.path={}", "degradation=x",
    "degradation.preset=x", "degradation.blur_sigma=[0, 0]", "degradation.blur_sigma=[1]",
    "degradation.blur_sigma=[1, 1e9]", "degradation.blur_sigma=[nan, 1]", "degradation.blur_sigma2=[0, 0]",
    "degradation.kernel_sizes=[0, 0]", "degradation.kernel_sizes=[7, 100001]",
    "degradation.kernel_sizes=[-1, 7]", "degradation.kernel_sizes_x8=[0, 41]",
    "degradation.jpeg_range=[0, 0]", "degradation.jpeg_range=[0, 95]", "degradation.jpeg_range2=[1, 101]",
    "degradation.resize_range=[0, 1.5]", "degradation.resize_range=[0.5, 0.9]",
    "degradation.resize_range2=[0, 1]", "degradation.resize_range2=[0.01, 1]",
    "degradation.resize_range=[1, 1e9]", "degradation.betag_range=[0, 4]", "degradation.betap_range=[2, 4]",
    "degradation.kernel_prob=[0, 0, 0, 0, 0, 0]", "degradation.sinc_prob=2",
    "degradation.noise_range=[-1, 3]", "degradation.enlarge=x",
    "degradation={preset: nano, jpeg_quality: [0, 0]}", "degradation={preset: clean, kernels: []}",
    "degradation={preset: nano, shift_prob: nan}", "softness={prob: 2}", "softness={sigma: [2, 1]}",
    "softness={full_at: 0}", "softness={prob: 0.9}", "validation.every=-1", "validation.images=0",
    "validation.best=x", "validation.input=x", "posterior=median", "discriminator.kind=x",
    "discriminator.width=33", "discriminator.lora_rank=0",
]  # fmt: skip
"""`--set`, for a stage 1 with R 64, M [2] and Real-ESRGAN's degradation; each is exit 10."""

MODELS = [
    "model.layers_per_block=1000000000", "model.layers_per_block=0", "model.block_out_channels=[]",
    "model.block_out_channels=[1000000000]", "model.block_out_channels=[0]", "model.norm_num_groups=0",
    "model.norm_num_groups=7", "model.num_attention_heads=0", "model.patch_size=0",
    "model.patch_size=1000000", "model.margin=-1", "model.margin=1000000000", "model.cross_attention_dim=0",
    "model.beta=0", "model.beta=1", "model.beta=nan", "model.beta=-1", "model.feature_channels=-1",
    "model={feature_channels: 4, decoder_widths: []}", "t2_prob=1.5", "t2_prob=nan", "N=0", "N=7",
    "loss.gan=1", "t2=1000000",
]  # fmt: skip
"""`--set` for a base; each is exit 10."""

UNREAD: dict[str, list[str]] = {
    "VGG16 that is an HTML page": ["loss={ea_dists: 1}", "dists.vgg16=page.pth"],
    "VGG16 that is an HTML page, safetensors": ["loss={ea_dists: 1}", "dists.vgg16=page.safetensors"],
    "VGG16 that is a list": ["loss={ea_dists: 1}", "dists.vgg16=list.pth"],
    "VGG16 that is a folder": ["loss={ea_dists: 1}", "dists.vgg16=folder.pth"],
    "DISTS that is an HTML page": ["loss={ea_dists: 1}", "dists={vgg16: random, weights: page.pth}"],
    "a list in UTF-16": ["data={source: list, path: utf16.txt}", "softness={}"],
    "a list of bytes": ["data={source: list, path: bytes.txt}", "softness={}"],
    "a list of nothing": ["data={source: list, path: empty.txt}", "softness={}"],
    "a list of pages": ["data={source: list, path: pages.txt}", "softness={}"],
    "a folder of none": ["data={source: folder, path: folder.pth}", "softness={}"],
    "shards that are pages": ["data={source: webdataset, path: page.tar}", "softness={}"],
    "DINO that is a page": [
        "loss={gan: 1}", "discriminator={kind: dinov3, weights: folder.pth}"
    ],
    "a D of layers that are not there": [
        "loss={gan: 1}", "discriminator={kind: dinov3, weights: random, layers: [0]}"
    ],
    "a D of too many layers": [
        "loss={gan: 1}", "discriminator={kind: dinov3, weights: random, layers: [1000000000]}"
    ],
    "a D without a weight": ["discriminator={kind: dinov3, weights: random}"],
}  # fmt: skip
"""`--set` that names files which are not what they should be; exit 10 at the latest with the first pair."""


def write_files(folder: Path) -> None:
    """The files that `UNREAD` names."""
    page = b"<!doctype html>\n<html><body>404</body></html>\n" * 100
    for name in ("page.pth", "page.safetensors", "page.tar", "0.png"):
        (folder / name).write_bytes(page)
    (folder / "list.pth").write_bytes(_pickled_list())
    (folder / "folder.pth").mkdir()
    (folder / "utf16.txt").write_bytes("0.png\n".encode("utf-16"))
    (folder / "bytes.txt").write_bytes(bytes(range(256)))
    (folder / "empty.txt").write_bytes(b"\n\n")
    (folder / "pages.txt").write_bytes(b"0.png\n")


def _pickled_list() -> bytes:
    import io

    import torch

    file = io.BytesIO()
    torch.save([1, 2, 3], file)
    return file.getvalue()
