"""The whole path from a picture to a larger one: plan, stages, colour, exact size."""

from __future__ import annotations

import copy
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tudsr_runtime.bundle import DECODERS, Bundle, open_bundle
from tudsr_runtime.calls import Calls
from tudsr_runtime.engines.backend import AUTO, Choice, Notify
from tudsr_runtime.engines.choose import Asked, choose
from tudsr_runtime.engines.select import BUILT
from tudsr_runtime.engines.stages import LoadedEngines, LoadedStage
from tudsr_runtime.errors import DeviceError, MemoryExhausted, UsageError, quoted
from tudsr_runtime.machine import as_exhausted, require_memory
from tudsr_runtime.pictures.in_memory import like, to_picture
from tudsr_runtime.planes import WRAPS, FloatArray, Levels, PlanarView
from tudsr_runtime.tile_times import stored_times
from tudsr_runtime.tiling.axis import OVERLAP
from tudsr_runtime.tiling.color import DEFAULT_COLOR, color_method
from tudsr_runtime.tiling.cost import TileCosts
from tudsr_runtime.tiling.plan import Plan, StagePlan, is_number, plan_upscale
from tudsr_runtime.tiling.resample import Rows, resize_stream
from tudsr_runtime.tiling.run_ahead import Abandoned, in_background
from tudsr_runtime.tiling.stages import Progress, run_stages
from tudsr_runtime.tiling.wrap import margins, unwrapped

Level = TypeVar("Level", np.uint8, np.uint16, np.float32)
Result = TypeVar("Result")


def _tell_nobody(_: str) -> None:
    pass


class Upscaler:
    """Enlarges pictures with a bundle, on one back end and device chosen at the start.

    Engines are loaded when a picture first needs them and kept until `close`; use it as a context manager, or
    close it. `upscale` may be called from several threads at once (the calls share the engines and nothing
    else); `close` ends what is under way, with an error there.

    It pickles by its arguments: another process makes an Upscaler of its own of it, and loads its own
    engines. So a pool is given one by an `initializer`, once a process, not with every picture. After a fork
    the child cannot use that of its parent, which is said: processes are to be started by "spawn".

    Args:
        bundle: "nano", the bundle that comes with the package, "hf:OWNER/NAME" for one of the hub, a bundle's
            folder, or an opened Bundle.
        backend: "auto" or a name in `tudsr_runtime.engines.select.BACKENDS`.
        device: "auto" or a name in `tudsr_runtime.engines.select.DEVICES`, numbered if need be: "cuda:1".
        precision: "auto", or the arithmetic that it has to be: "fp32", "bf16" or "fp16".
        threads: CPU threads, of which at most one a processor is used; None leaves it to the back end.
        overlap: least overlap of neighbouring tiles in px, 17 to half of the largest tile; None for what the
            bundle was measured to be good with, else 128.
        color: a name in `tudsr_runtime.tiling.color.COLOR_METHODS`.
        strength: 0 to 1, or a pair for stage 1 and stage 2: how far a stage goes from the Lanczos enlargement
            of its input (0) to the model's result (1). Less is more faithful.
        sanity: False lets tiles pass that kept nothing of the input, as models of random weights make them.
        notify: told in plain words when something is done otherwise than planned.
        tile: the only size of tiles in px to use; None for those of the bundle that take the least time.
        decoder: "full", or "light" for the smaller decoder that a bundle may have beside its own.
        wrap: "x" for pictures whose left and right edge meet, such as 360-degree panoramas, "xy" for tiles of
            a texture, "none".
        engines: folder of engines that `tudsr build` made, for the back ends tensorrt and tensorrt-rtx; None
            for those in the user's cache.

    Raises:
        BundleError: there is no sound bundle.
        DeviceError: what was asked for is not available here.
        UsageError: an argument is out of its range or of another kind.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle = "nano",
        backend: str = AUTO,
        device: str = AUTO,
        threads: int | None = None,
        overlap: int | None = None,
        color: str = DEFAULT_COLOR,
        precision: str = AUTO,
        strength: float | Sequence[float] = 1.0,
        sanity: bool = True,
        notify: Notify = _tell_nobody,
        engines: Path | None = None,
        tile: int | None = None,
        wrap: str = "none",
        decoder: str = DECODERS[0],
    ) -> None:
        arguments = locals()
        self._arguments = {name: arguments[name] for name in arguments.keys() - {"self"}}
        self._process = os.getpid()
        if threads is not None and not (isinstance(threads, int) and threads >= 1):
            raise UsageError(f"threads must be a whole number, at least 1, not {quoted(threads)}")
        if not isinstance(bundle, str | Path | Bundle):
            raise UsageError(f'bundle must be "nano", a folder or a Bundle, not {quoted(bundle)}')
        if not isinstance(device, str):
            raise UsageError(f'device must be a name such as "cpu" or "cuda:1", not {quoted(device)}')
        self._strength = _per_stage(strength)
        self._color = color_method(color)
        self.wrap = _known_wrap(wrap)
        """Which edges of pictures meet."""
        self.color = color
        """Name of the colour correction."""
        self._sanity = sanity
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, verify=False, notify=notify)
        self.bundle = opened.with_decoder(decoder)
        manifest = self.bundle.manifest
        if tile is not None and tile not in self.bundle.tiles:
            sizes = ", ".join(map(str, self.bundle.tiles))
            raise UsageError(f"tile must be a size that {manifest.name} has, {sizes} px, not {quoted(tile)}")
        # A bundle of networks that see far may ask for more than its own size of tile can overlap by.
        self._tile = tile or max(self.bundle.tiles)
        usual = manifest.overlap or min(OVERLAP, (tile or manifest.tile) // 2)
        usual = min(usual, self._tile // 2)
        self._overlap = _checked(usual if overlap is None else overlap, self._tile)
        asked = Asked(backend, device, precision, engines)
        self.choice: Choice = choose(self.bundle, asked, threads, notify)[0]
        """The back end, device and arithmetic that run, and why."""
        if not isinstance(bundle, Bundle) and self.choice.backend not in BUILT:
            self.bundle.check()
        self._engines = LoadedEngines(self.bundle, self.choice, threads, notify, tile)
        self._exhausted: int | None = None
        self._under_way: set[Calls] = set()
        self._costs = stored_times(self.bundle, self.choice, threads, notify) or _counted(self.bundle)
        self.settings: dict[str, object] = {
            "overlap": self._overlap,
            "color": color,
            "strength": self._strength,
            "precision": self.choice.precision.name if self.choice.precision else None,
            # Left out where it is none, so that what earlier versions made counts as done.
            **({} if tile is None else {"tile": tile}),
            **_said_wrap(wrap),
            **({} if decoder == DECODERS[0] else {"decoder": decoder}),
        }
        """What the result depends on besides bundle, picture, factors and size."""

    def plan(
        self,
        width: int,
        height: int,
        scale: float | None = None,
        factors: str | None = None,
        *,
        size: tuple[int, int] | None = None,
    ) -> Plan:
        """What `upscale` would do with a picture of that size, computed at no cost. Errors as there."""
        sides: tuple[object, object] = width, height
        if not all(isinstance(side, int | np.integer) for side in sides):
            given = f"{quoted(width)} and {quoted(height)}"
            raise UsageError(f"width and height must be whole numbers of px, not {given}")
        plan = self._planned(int(width), int(height), scale, factors, size)
        across, down = margins(self.wrap, plan.factors[0])
        if not across + down:
            return plan
        extended = self._planned(plan.width + 2 * across, plan.height + 2 * down, None, plan.notation, None)
        reason = f"{plan.reason}; wrapped ({self.wrap}) by {across} px of the other side"
        return dataclasses.replace(plan, stages=extended.stages, reason=reason, margin=(across, down))

    def _planned(
        self,
        width: int,
        height: int,
        scale: float | None,
        factors: str | None,
        size: tuple[int, int] | None,
    ) -> Plan:
        """The plan for a picture whose edges do not meet."""
        manifest, tiles = self.bundle.manifest, self._engines.tiles
        return plan_upscale(
            width,
            height,
            scale,
            factors,
            size=size,
            stages=len(manifest.stages),
            tile=tiles,
            # Where memory has run out, only tiles that are too small for the overlap may be left.
            overlap=min(self._overlap, max(tiles) // 2),
            plans=manifest.plans,
            costs=self._costs,
            own=manifest.own_factors,
        )

    @overload
    def upscale(
        self,
        image: Image.Image,
        scale: float | None = ...,
        factors: str | None = ...,
        progress: Progress | None = ...,
        *,
        size: tuple[int, int] | None = ...,
    ) -> Image.Image: ...

    @overload
    def upscale(
        self,
        image: NDArray[Level],
        scale: float | None = ...,
        factors: str | None = ...,
        progress: Progress | None = ...,
        *,
        size: tuple[int, int] | None = ...,
    ) -> NDArray[Level]: ...

    def upscale(
        self,
        image: Levels | Image.Image,
        scale: float | None = None,
        factors: str | None = None,
        progress: Progress | None = None,
        *,
        size: tuple[int, int] | None = None,
    ) -> Levels | Image.Image:
        """Enlarge a picture; the result is of the same kind.

        Args:
            image: an array (h, w) or (h, w, c) with c = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; uint8,
                uint16, or float32 in [0, 1]; sRGB-encoded. Or a Pillow image; EXIF orientation is applied.
            scale: 1 to 32; None means what `size` says, else the product of `factors`, else 8, or of a bundle
                that is a network the factor of that.
            factors: None to choose by the scale, else "4x2", "4x-" (stage 1 alone) or "-x4" (stage 2 alone).
            progress: called after each tile, from another thread, with the number of tiles done and of all.
            size: (width, height) of the result in px, in the place of `scale`.

        Returns:
            An array of the same dtype and channels, with floor(side scale + 0.5) px a side, integers rounded
            to the nearest; or a Pillow image of mode L, LA, I;16, RGB or RGBA with the same colour profile.

        Raises:
            InputError: `image` is no such picture.
            UsageError: scale, factors, size or overlap is invalid.
            BundleError: the bundle lacks a stage that `factors` ask for, or a graph does not fit its
            manifest. DeviceError: the back end failed. MemoryExhausted: the device or this process has too
            little memory. NotFiniteError: the model produced NaN or infinity.
        """
        picture = dataclasses.replace(to_picture(image), wrap=self.wrap)

        def attempt() -> Levels | Image.Image:
            plan = self.plan(picture.width, picture.height, scale, factors, size=size)
            output, by_columns = (plan.output_width, plan.output_height), plan.by_columns(0)
            tiles = (plan.turned if by_columns else plan).held_bytes
            result = output[0] * output[1] * picture.bytes // (picture.width * picture.height)
            require_memory(tiles + result, f"a result of {output[0]} x {output[1]} px")
            bands = self._bands(picture.levels, plan, progress, by_columns)
            try:
                return like(image, picture, bands, output, by_columns)
            except MemoryError as error:
                raise _too_large(plan) from error

        return self.with_smaller_tiles(attempt)

    def upscale_rows(
        self,
        image: Levels,
        scale: float | None = None,
        factors: str | None = None,
        progress: Progress | None = None,
        *,
        size: tuple[int, int] | None = None,
        by_columns: bool = False,
    ) -> Iterator[FloatArray]:
        """The colour of `upscale` as a stream of bands, for a result too large to hold.

        Takes levels (h, w) or (h, w, 3), converted a band at a time; gives float32 (rows, width, 3) in [0, 1]
        from top to bottom, or with `by_columns` (columns, height, 3) from left to right. Arguments are
        checked at once; the other errors come while iterating. Holds the input, and one row of tiles per
        stage, or one column (`Plan.by_columns` says which is less).
        """
        picture = to_picture(image)
        plan = self.plan(picture.width, picture.height, scale, factors, size=size)
        return self._bands(picture.levels, plan, progress, by_columns)

    def stage(self, plan: StagePlan) -> LoadedStage:
        """The engines that run that pass over a canvas, loaded if need be. Raises as `upscale`."""
        if os.getpid() != self._process:
            raise UsageError(
                "this Upscaler was made before the process was forked, and its engines do not work here",
                hint='make one in this process, or start it by multiprocessing.get_context("spawn")',
            )
        return self._engines.stage(plan.stage, plan.columns.tile)

    def with_smaller_tiles(self, attempt: Callable[[], Result]) -> Result:
        """Return what `attempt` does, called again with smaller tiles each time an engine lacks memory.

        For what takes `upscale_rows`, and asks for it anew each time; `upscale` does this itself.

        Raises:
            MemoryExhausted: the bundle has no smaller tile, or it was not an engine that lacked memory. And
            all else that `attempt` raises.
        """
        while True:
            try:
                return attempt()
            except MemoryExhausted:
                tile, self._exhausted = self._exhausted, None
                if tile is None or not self._engines.give_way(tile):
                    raise

    def with_look(
        self,
        *,
        strength: float | Sequence[float] | None = None,
        color: str | None = None,
        overlap: int | None = None,
        wrap: str | None = None,
    ) -> Upscaler:
        """Another Upscaler on the same engines, for pictures that are to look otherwise; None: as this one.

        Nothing is loaded for it, and `close` of either releases the engines of both. Errors as the
        constructor's.
        """
        other = copy.copy(self)
        other._exhausted = None
        changed: dict[str, object] = {}
        if strength is not None:
            other._strength = changed["strength"] = _per_stage(strength)
        if color is not None:
            other._color, other.color, changed["color"] = color_method(color), color, color
        if overlap is not None:
            other._overlap = changed["overlap"] = _checked(overlap, self._tile)
        if wrap is not None:
            other.wrap = _known_wrap(wrap)
        other._arguments = {**self._arguments, **changed, "wrap": other.wrap}
        settings = {name: value for name, value in self.settings.items() if name != "wrap"}
        other.settings = {**settings, **changed, **_said_wrap(other.wrap)}
        return other

    def close(self) -> None:
        """Release the engines. They are loaded again if another picture follows.

        What is under way, in other threads or as a stream that has not been read to its end, raises
        UsageError there.

        Raises:
            DeviceError: an engine library is at work and cannot be ended; nothing is released.
        """
        for calls in tuple(self._under_way):
            calls.end("the Upscaler was closed while this picture was computed")
        if not all(calls.wait() for calls in tuple(self._under_way)):
            raise DeviceError("the engine library is still at work, and its engines are not released")
        if os.getpid() == self._process:
            self._engines.close()

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), **self._arguments), ()

    def __repr__(self) -> str:
        return f"<Upscaler {self.bundle.manifest.name}: {self.choice}>"

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _bands(
        self, image: Levels, plan: Plan, progress: Progress | None, by_columns: bool
    ) -> Iterator[FloatArray]:
        calls = Calls()
        self._under_way.add(calls)
        try:
            order = plan.turned if by_columns else plan
            x = PlanarView(image.swapaxes(0, 1) if by_columns else image, order.margin)
            rows = self._color(self._running(x, order, progress, by_columns, calls), x, plan.product)
            yield from map(_to_image, _exact_size(rows, order))
        except MemoryError as error:
            raise _too_large(plan) from error
        except RuntimeError as error:
            raise as_exhausted(error) or error from error
        except MemoryExhausted as error:
            self._exhausted = max(stage.columns.tile for stage in plan.stages)
            with_tiles = f"{error}, with tiles of {self._exhausted} px"
            raise MemoryExhausted(with_tiles, hint=error.hint) from error
        finally:
            self._under_way.discard(calls)

    def _running(
        self, x: PlanarView, plan: Plan, progress: Progress | None, turned: bool, calls: Calls
    ) -> Rows:
        """The stages in a thread of their own, so that colour and encoding go on beside them."""
        stages = [self.stage(stage) for stage in plan.stages]
        again = [
            second and partial(calls.run, second)
            for second in (self._engines.again(*place) for place in plan.places)
        ]

        def run(stop: threading.Event) -> Rows:
            def on_tile(done: int, total: int) -> None:
                if stop.is_set():
                    raise Abandoned
                if progress is not None:
                    progress(done, total)

            parallel = max(stage.parallel for stage in stages)
            runs = [partial(calls.run, stage.run) for stage in stages]
            strength = [self._strength[stage.stage] for stage in plan.stages]
            return run_stages(x, plan.stages, runs, on_tile, parallel, again, self._sanity, turned, strength)

        return in_background(run, on_stop=lambda: calls.end("nobody wants the picture any more"))


def _counted(bundle: Bundle) -> TileCosts | None:
    """The operations that the bundle's manifest counts; None if it does not, of some size."""
    counted = {place: bundle.macs(*place) for place in bundle.places}
    if None in counted.values():
        return None
    return TileCosts({place: macs / 1e12 for place, macs in counted.items() if macs is not None})


def _checked(overlap: int, tile: int) -> int:
    if isinstance(overlap, bool) or not isinstance(overlap, int):
        raise UsageError(f"overlap must be a whole number of px, not {quoted(overlap)}")
    plan_upscale(1, 1, tile=tile, overlap=overlap)  # Rejects what cannot be.
    return overlap


def _known_wrap(wrap: str) -> str:
    if wrap not in WRAPS:
        raise UsageError(f"wrap must be one of {', '.join(WRAPS)}, not {quoted(wrap)}")
    return wrap


def _said_wrap(wrap: str) -> dict[str, object]:
    """As a setting; left out where no edges meet, so that what earlier versions made counts as done."""
    return {} if wrap == "none" else {"wrap": wrap}


def _per_stage(strength: object) -> tuple[float, float]:
    pair = tuple(strength) if isinstance(strength, (tuple, list)) else (strength, strength)
    if len(pair) != 2 or not all(is_number(s) and 0 <= s <= 1 for s in pair):
        given = quoted(strength)
        raise UsageError(f"strength must be a number from 0 to 1, or two such numbers, not {given}")
    return float(pair[0]), float(pair[1])


def _exact_size(rows: Rows, plan: Plan) -> Rows:
    if any(plan.margin):
        return unwrapped(rows, plan)
    width, height = plan.width * plan.product, plan.height * plan.product
    if (width, height) == (plan.output_width, plan.output_height):
        return rows
    return resize_stream(rows, height, plan.output_height, plan.output_width)


def _to_image(band: FloatArray) -> FloatArray:
    """(3, rows, w) around [-1, 1] to (rows, w, 3), clamped to [0, 1]."""
    image = np.array(band.transpose(1, 2, 0), order="C")
    image += 1
    image *= 0.5
    clamped: FloatArray = np.clip(image, 0, 1, out=image)
    return clamped


def _too_large(plan: Plan) -> MemoryExhausted:
    size = f"{plan.output_width}x{plan.output_height} px"
    gigabytes = plan.output_width * plan.output_height * 12 / 1e9
    return MemoryExhausted(
        f"out of memory for a result of {size} ({gigabytes:.1f} GB in float32)",
        hint="a smaller scale, or a part of the picture",
    )
