"""Enlarge a picture by a model that Triton Inference Server runs; tiles are cut and blended on this machine.

    tudsr bundle triton nano models                      # writes the repository that the server loads
    python examples/triton_client.py photo.png -o photo_x8.png --server http://localhost:8000

It speaks the KServe v2 protocol over HTTP, with Triton's extension for binary tensors, by Python's standard
library alone. Tiles are sent to the ensembles, such as `nano_stage1`; the bundle that the repository was
written from is needed here too, for its plans, not for its weights. Needs `pip install ".[cpu]"`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tudsr_runtime import Upscaler
from tudsr_runtime.engines.tensorrt.record import engine_name
from tudsr_runtime.errors import DeviceError, TudsrError

DTYPES = {"FP16": np.dtype(np.float16), "FP32": np.dtype(np.float32)}
BROKEN = (ValueError, LookupError, TypeError)
"""What reading an answer raises that is not as the protocol says."""
HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Server:
    """A server that answers the KServe v2 protocol.

    Args:
        address: such as "http://localhost:8000".
        timeout: seconds to wait for an answer.
    """

    address: str
    timeout: float = 120

    def model(self, name: str) -> RemoteModel:
        """A model that takes one tensor and gives one. Raises DeviceError."""
        try:
            told = json.loads(self.ask(f"v2/models/{name}")[1])
            (inside,), (outside,) = told["inputs"], told["outputs"]
        except BROKEN as error:
            raise DeviceError(f"{self.address} is no server of the KServe v2 protocol: {error!r}") from error
        if inside["datatype"] not in DTYPES:
            raise DeviceError(f"the model {name} takes {inside['datatype']}, not {' or '.join(DTYPES)}")
        shape = tuple(map(int, inside["shape"]))
        return RemoteModel(self, name, inside["name"], outside["name"], inside["datatype"], shape)

    def ask(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPMessage, bytes]:
        """Header and body of an answer; POST where there is a body. Raises DeviceError."""
        request = urllib.request.Request(f"{self.address.rstrip('/')}/{path}", body, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            raise DeviceError(f"the server says {error.code} to {path}: {_said(error.read())}") from error
        except (OSError, http.client.HTTPException) as error:
            hint = "is it running, and is that its port for HTTP?"
            raise DeviceError(f"no answer from {self.address}: {error}", hint=hint) from error


def _said(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except BROKEN:
        return body[:200].decode(errors="replace") or "nothing"


@dataclass(frozen=True)
class RemoteModel:
    """One ensemble: an upsampled tile (1, 3, T, T) in [-1, 1] in, the restored one out."""

    server: Server
    name: str
    input: str
    output: str
    datatype: str
    shape: tuple[int, ...]

    def run(self, tile: NDArray[np.float32]) -> NDArray[np.float32]:
        """Send one tile, float32, and wait for it. Raises DeviceError."""
        if tile.shape != self.shape:
            raise DeviceError(
                f"the model {self.name} takes {self.shape}, this bundle's tiles are {tile.shape}"
            )
        sent = tile.astype(DTYPES[self.datatype]).tobytes()
        described = {
            "inputs": [
                {
                    "name": self.input,
                    "datatype": self.datatype,
                    "shape": tile.shape,
                    "parameters": {"binary_data_size": len(sent)},
                }
            ],
            "outputs": [{"name": self.output, "parameters": {"binary_data": True}}],
        }
        head = json.dumps(described).encode()
        headers = {HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
        told, body = self.server.ask(f"v2/models/{self.name}/infer", head + sent, headers)
        return self._tensor(body, int(told.get(HEADER_LENGTH, len(body))))

    def _tensor(self, body: bytes, head: int) -> NDArray[np.float32]:
        try:
            (found,) = json.loads(body[:head])["outputs"]
            dtype, shape = DTYPES[found["datatype"]], tuple(map(int, found["shape"]))
            binary = "data" not in found
            values = np.frombuffer(body, dtype, offset=head) if binary else np.array(found["data"], dtype)
        except BROKEN as error:
            raise DeviceError(f"the answer of {self.name} cannot be read: {error!r}") from error
        if shape != self.shape or values.size != np.prod(shape):
            raise DeviceError(f"the model {self.name} gave {values.size} values of {shape}, not {self.shape}")
        return values.reshape(shape).astype(np.float32)


@dataclass(frozen=True)
class RemoteStage:
    """What an Upscaler asks of a stage: a function of a tile, and how many to run at a time."""

    run: Any
    parallel: int


class TritonUpscaler(Upscaler):
    """An Upscaler whose tiles are computed by a server; everything else is as without one.

    Args:
        server: who computes.
        parallel: tiles that are under way at a time; Triton runs as many as it has instances.
        suffix: "_tensorrt" for the models of TensorRT's engines.
        look: arguments of Upscaler that do not say where tiles are computed: bundle, strength, color, ...
    """

    def __init__(self, server: Server, parallel: int = 4, suffix: str = "", **look: Any) -> None:
        super().__init__(backend="onnxruntime", device="cpu", **look)
        self._server, self._parallel, self._suffix = server, parallel, suffix
        self._models: dict[str, RemoteModel] = {}

    def stage(self, plan: Any) -> Any:
        """The ensemble for tiles of the plan's size. Raises DeviceError."""
        manifest = self.bundle.manifest
        part = engine_name(self.bundle, manifest.stages[plan.stage].name, plan.columns.tile)
        name = f"{manifest.name}_{part}{self._suffix}"
        if name not in self._models:
            self._models[name] = self._server.model(name)
        return RemoteStage(self._models[name].run, self._parallel)


def main() -> int:
    """Returns the exit code of the error, as `tudsr upscale` does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--server", default="http://localhost:8000")
    parser.add_argument("--bundle", default="nano", help="the bundle that the repository was written from")
    parser.add_argument("--scale", type=float, default=8)
    parser.add_argument("--parallel", type=int, default=4, help="tiles under way at a time")
    parser.add_argument("--tile", type=int, help="the only size of tiles, where the server has no other")
    parser.add_argument("--suffix", default="", help="_tensorrt for TensorRT's engines")
    args = parser.parse_args()
    try:
        server, look = Server(args.server), {"bundle": args.bundle, "tile": args.tile}
        with TritonUpscaler(server, args.parallel, args.suffix, **look) as upscaler:
            upscaler.upscale(Image.open(args.photo), args.scale).save(args.output)
    except (TudsrError, OSError) as error:
        hint = getattr(error, "hint", None)
        print(f"error: {error}" + (f" (try: {hint})" if hint else ""), file=sys.stderr)
        return getattr(error, "exit_code", 8)
    return 0


if __name__ == "__main__":
    sys.exit(main())
