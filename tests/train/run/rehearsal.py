"""Run by test_processes.py, once, in a process of its own: trainings that are killed or that run in pairs.

    python rehearsal.py FOLDER BASE POOL-CACHE

Everything heavy is imported here once; each training is a fork, with one thread, so that nothing of it is
shared. Prints one JSON object: for every scenario, where the run was resumed and what became of it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.train.recipes import DISCRIMINATOR, stage1_config
from tests.train.run.ports import free_port
from tudsr_train.data.sources import Data
from tudsr_train.run import checkpoint
from tudsr_train.stage1 import train_stage1
from tudsr_train.training import Heads


def fork(work: Callable[[], None]) -> int:
    """The exit status of `work`, done in a fork: negative for a signal."""
    return finish(begin(work))


def begin(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(out: Path, base: Path, pool: Data, **changes: Any) -> None:
    train_stage1(stage1_config(base, pool, **changes), out, "auto")


def killed_at(point: str, nth: int) -> None:
    """From now on the nth passing of a save's `point` is the end of this process."""
    passed = []

    def die(here: str) -> None:
        passed.extend([here] * (here == point))
        if len(passed) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.at_point = die


def crashes(folder: Path, base: Path, pool: Data) -> dict[str, dict[str, Any]]:
    """By point: three steps, saved at each; killed in the save of the second, then resumed to the end."""

    def whole(point: str) -> None:
        train(folder / point, base, pool, steps=3, save_every=1)

    def first(point: str) -> None:
        killed_at(point, nth=2)
        whole(point)

    killed = side_by_side({point: partial(first, point) for point in checkpoint.POINTS})
    newest = {point: checkpoint.newest(folder / f"{point}.run", lambda _: None) for point in killed}
    resumed = side_by_side({point: partial(whole, point) for point in checkpoint.POINTS})
    return {
        point: {"status": killed[point], "resumed_at": found.step if found else 0, "second": resumed[point]}
        for point, found in newest.items()
    }


def side_by_side(works: dict[str, Callable[[], None]]) -> dict[str, int]:
    """The exit statuses of forks of one thread each, by name."""
    children = {name: begin(work) for name, work in works.items()}
    return {name: finish(child) for name, child in children.items()}


def in_pairs(train_one: Callable[[int], None]) -> list[int]:
    """The exit statuses of two processes that train together, `train_one(rank)` each."""
    port = str(free_port())

    def work(rank: int) -> Callable[[], None]:
        def one() -> None:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            train_one(rank)

        return one

    children = [begin(work(rank)) for rank in range(2)]
    return [finish(child) for child in children]


def on_two_machines(folder: Path, base: Path, pool: Data) -> dict[str, Any]:
    """A run by one process of two steps, resumed by two for a third, each with a folder of its own; then
    processes that do not agree on the number of steps."""
    fork(lambda: train(folder / "0" / "out", base, pool, steps=2, save_every=1))
    resumed = in_pairs(lambda rank: train(folder / str(rank) / "out", base, pool, steps=3, save_every=1))
    unlike = in_pairs(lambda rank: train(folder / "unlike" / str(rank), base, pool, steps=2 + rank))
    return {"resumed": resumed, "unlike": unlike}


def adversarial(out: Path, base: Path, pool: Data, accumulation: int) -> None:
    """Posterior mode, and D's spectral norms held still: they move on with every forward."""
    in_train = Heads.__init__

    def in_eval(self: Heads, discriminator: Any, *rest: Any) -> None:
        in_train(self, discriminator.eval(), *rest)

    Heads.__init__ = in_eval  # type: ignore[method-assign]
    # plain gradient descent would do; with AdamW, eps keeps the sign of a gradient of zero from mattering
    config = stage1_config(base, pool, steps=2, accumulation=accumulation, save_every=2, eps=1e-3)
    train_stage1(replace(config, posterior="mode", discriminator=DISCRIMINATOR), out, "auto")


def main(folder: Path, base: Path, cache: str) -> None:
    torch.set_num_threads(1)
    pool = Data(count=2, size=128, seed=1, cache=cache)
    fork(lambda: train(folder / "whole", base, pool, steps=3, save_every=1))
    found: dict[str, Any] = crashes(folder, base, pool)
    found["two"] = in_pairs(lambda _: adversarial(folder / "two", base, pool, accumulation=1))
    found["machines"] = on_two_machines(folder / "machines", base, pool)
    found["one"] = fork(lambda: adversarial(folder / "one", base, pool, accumulation=2))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
