"""DISTS, LPIPS, FID and KID by networks whose weights the user names. Needs torch; nothing is downloaded
unless a hub id is named.

DISTS and LPIPS compare the features of a picture and its reference; FID and KID those of two sets.
A VGG16 that is not the one DISTS was made for (fine-tuned, for instance) is reported by its own name,
`dists[hed]`, never as DISTS: its channels are others, so DISTS' weights are averaged over each stage.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tudsr_eval.scores import Metric, load
from tudsr_runtime.errors import BundleError, TudsrError, UsageError
from tudsr_runtime.metrics.pixels import Array, Floats, require_at_least, rgb

if TYPE_CHECKING:
    from torch import Tensor

    from tudsr_train.losses.dists import DISTS

PairMetric = Callable[["Tensor", "Tensor"], list[float]]
"""Pictures (n, 3, h, w) and a reference (1, 3, h, w), both in [0, 1], to n scores."""
LEARNED = ("dists", "lpips", "fid", "kid")
OF_SETS = ("fid", "kid")
"""Those of a whole method, not of a picture."""
LEAST_SIDE = 32
"""Below this the fifth stage has less than 2 x 2 positions."""
INCEPTION_URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
)


@dataclass(frozen=True)
class Weights:
    """Where the networks of the learned metrics lie: files, or ids of the Hugging Face hub."""

    vgg16: str | None = None
    """VGG16, torchvision's names."""
    dists: str = ""
    """DISTS' alpha and beta; empty takes the file in an installed DISTS-pytorch."""
    alexnet: str | None = None
    """AlexNet, torchvision's names."""
    lpips: str | None = None
    """LPIPS' linear heads for AlexNet, v0.1; None takes the file in an installed lpips or torchmetrics."""
    inception: Path | None = None
    """The Inception of FID as TorchScript."""


@dataclass(frozen=True)
class Learned:
    """Networks that are loaded, and what they measure."""

    metrics: dict[str, Metric]
    of_pairs: dict[str, PairMetric]
    features: Callable[[Array], Floats] | None

    def of_picture(self, picture: Array, reference: Array | None) -> dict[str, float]:
        """Scores against the reference; none without one. InputError where a side is below 32 px."""
        return self.of_many([picture], reference)[0]

    def of_many(self, pictures: Sequence[Array], reference: Array | None) -> list[dict[str, float]]:
        """The same of several pictures of one reference, whose own features are computed once."""
        if reference is None or not self.of_pairs:
            return [{} for _ in pictures]
        import torch

        require_at_least(reference, LEAST_SIDE, LEAST_SIDE, "a learned metric")
        x, y = torch.cat([as_batch(picture) for picture in pictures]), as_batch(reference)
        columns = {name: function(x, y) for name, function in self.of_pairs.items()}
        return [{name: values[i] for name, values in columns.items()} for i in range(len(pictures))]

    def of_sets(
        self, predictions: Mapping[str, Sequence[Path]], references: Sequence[Path]
    ) -> dict[str, dict[str, float]]:
        """FID and KID of each method's pictures against all references."""
        wanted = [name for name in OF_SETS if name in self.metrics]
        if not wanted or self.features is None:
            return {}
        real = self._all_features(references)
        sets = {method: self._all_features(paths) for method, paths in predictions.items()}
        functions = {"fid": fid, "kid": kid}
        return {
            method: {name: functions[name](found, real) for name in wanted} for method, found in sets.items()
        }

    def _all_features(self, paths: Sequence[Path]) -> Floats:
        assert self.features is not None
        return np.concatenate([self.features(load(path)) for path in paths])


def load_learned(names: Sequence[str], weights: Weights) -> Learned:
    """The networks of the wanted metrics.

    Raises:
        UsageError: a metric is asked for whose weights are not named.
        BundleError: weights are absent or not what they should be; says where they can be downloaded.
    """
    metrics: dict[str, Metric] = {}
    of_pairs: dict[str, PairMetric] = {}
    features = None
    if "dists" in names:
        name, network = _load_dists(weights)
        metrics[name] = Metric(name, name if name != "dists" else "DISTS", "lower", 4, reference=True)
        of_pairs[name] = lambda x, y: [float(value) for value in network(x, y)]  # frozen: no gradient
    if "lpips" in names:
        metrics["lpips"] = Metric("lpips", "LPIPS", "lower", 4, reference=True)
        of_pairs["lpips"] = _load_lpips(weights)
    if set(names) & {*OF_SETS}:
        features = _load_inception(weights.inception)
        metrics |= {name: Metric(name, name.upper(), "lower", 3) for name in OF_SETS if name in names}
    return Learned(metrics, of_pairs, features)


def as_batch(picture: Array) -> Tensor:
    """(1, 3, h, w) float32 in [0, 1]."""
    import torch

    planes = np.ascontiguousarray(rgb(picture).transpose(2, 0, 1), np.float32)
    return torch.from_numpy(planes)[None]


def fid(x: Floats, y: Floats) -> float:
    """Frechet distance of two sets of features (pictures, dimensions). Heusel et al. 2017."""
    difference = x.mean(0) - y.mean(0)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    mixed = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(difference @ difference + np.trace(a) + np.trace(b) - 2 * mixed)


def kid(x: Floats, y: Floats) -> float:
    """Squared MMD of two sets of features by the cubic kernel, unbiased. Binkowski et al. 2018."""

    def kernel(a: Floats, b: Floats) -> Floats:
        cubed: Floats = (a @ b.T / x.shape[1] + 1) ** 3
        return cubed

    n, m = len(x), len(y)
    own = [
        (k.sum() - np.trace(k)) / (count * (count - 1)) for k, count in ((kernel(x, x), n), (kernel(y, y), m))
    ]
    return float(sum(own) - 2 * kernel(x, y).mean())


def _load_dists(weights: Weights) -> tuple[str, DISTS]:
    if weights.vgg16 is None:
        raise UsageError(
            "DISTS needs the weights of VGG16",
            hint="--vgg16 vgg16-397923af.pth (https://download.pytorch.org/models/) or timm/vgg16.tv_in1k",
        )
    from tudsr_train.losses.dists import DISTS, average_per_stage, load_alpha_beta
    from tudsr_train.losses.dists_name import dists_name
    from tudsr_train.vgg16 import load_vgg16

    try:
        name = dists_name(weights.vgg16)
        alpha, beta = load_alpha_beta(weights.dists)
        if name != "DISTS":
            alpha, beta = average_per_stage(alpha), average_per_stage(beta)
        network = DISTS(load_vgg16(weights.vgg16), alpha, beta)
    except TudsrError as error:
        hint = (error.hint or "").replace("`dists.vgg16`", "--vgg16").replace("`dists.weights`", "--dists")
        raise BundleError(str(error), hint=hint or None) from error
    return name.replace("DISTS", "dists"), network.eval()


def _load_lpips(weights: Weights) -> PairMetric:
    from tudsr_eval.lpips import load_lpips

    return load_lpips(weights.alexnet, weights.lpips)


def _load_inception(path: Path | None) -> Callable[[Array], Floats]:
    """(picture) to its 2048 features. The TorchScript file resizes by itself, as FID's authors did."""
    hint = f"--inception inception-2015-12-05.pt, from {INCEPTION_URL}"
    if path is None:
        raise UsageError("FID and KID need the Inception network that they are defined by", hint=hint)
    import torch

    try:
        with warnings.catch_warnings():
            # TorchScript is on its way out of torch, but it is what this network is published as
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(path), map_location="cpu").eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path}: no TorchScript file: {str(error).splitlines()[0]}", hint=hint) from error

    def features(picture: Array) -> Floats:
        levels = (as_batch(picture) * 255).round().to(torch.uint8)
        with torch.no_grad():
            found: Floats = network(levels, return_features=True).flatten(1).double().numpy()
        return found

    return features
