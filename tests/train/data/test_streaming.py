"""Streams: a number is the same picture for every process, every worker and after a restart."""

from __future__ import annotations

import functools
import http.server
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from tudsr_train.data.degradation_real_esrgan import RealESRGAN
from tudsr_train.data.pairs import Softness, Task
from tudsr_train.data.picture_files import DataError
from tudsr_train.data.sources import QUARANTINE_FILE, Data, open_source, training_pairs
from tudsr_train.data.streaming import expand_shards, read_shard

TASK = Task(16, (4,), 16)
PER_SHARD = 4


def _png(value: int, side: int = 20) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def _write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Six shards of four pictures; picture k of shard s is of one colour, 10 s + k."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for s in range(6):
        pictures = {f"{s}{k}.png": _png(10 * s + k) for k in range(PER_SHARD)}
        _write_shard(folder / f"train-{s:03}.tar", {f"{s}0.txt": b"a caption"} | pictures)
    return folder


def _data(shards: Path, **changes: object) -> Data:
    return Data(source="webdataset", path=(str(shards / "train-{000..005}.tar"),), **changes)  # type: ignore[arg-type]


def _colours(data: Data, run: Path, numbers: range) -> list[int]:
    source = open_source(data, TASK, 3, run, lambda _: None)
    return [int(source[number].high[0, 0, 0]) for number in numbers]


@pytest.mark.parametrize("lanes", [1, 3, 16])
def test_an_epoch_shows_every_picture_once(shards: Path, tmp_path: Path, lanes: int) -> None:
    colours = _colours(_data(shards, lanes=lanes), tmp_path, range(48))
    everything = sorted(10 * s + k for s in range(6) for k in range(PER_SHARD))
    assert sorted(colours[:24]) == sorted(colours[24:]) == everything
    assert colours[:24] != colours[24:]


def test_a_restart_goes_on_where_the_stream_was(shards: Path, tmp_path: Path) -> None:
    data = _data(shards, lanes=4)
    assert _colours(data, tmp_path, range(17, 40)) == _colours(data, tmp_path, range(40))[17:]
    source = open_source(data, TASK, 3, tmp_path, lambda _: None)
    backwards = [int(source[number].high[0, 0, 0]) for number in range(12, -1, -1)]
    assert backwards[::-1] == _colours(data, tmp_path, range(13))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than processors
def test_workers_do_not_change_a_stream(shards: Path, tmp_path: Path) -> None:
    pairs = training_pairs(
        _data(shards, lanes=4), TASK, Softness(), RealESRGAN(), 3, 40, tmp_path, lambda _: None
    )
    alone = [pairs[number] for number in range(10)]
    loader = DataLoader(Subset(pairs, range(10)), batch_size=2, num_workers=2)
    x_L, x_H = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(x_L, torch.stack([pair[0] for pair in alone]))
    assert torch.equal(x_H, torch.stack([pair[1] for pair in alone]))


def test_an_open_stream_can_be_sent_to_a_spawned_worker(shards: Path, tmp_path: Path) -> None:
    source = open_source(_data(shards, lanes=4), TASK, 3, tmp_path, lambda _: None)
    expected = source[5].high
    sent = pickle.loads(pickle.dumps(source))
    assert np.array_equal(sent[5].high, expected)


def test_what_is_damaged_or_small_gives_way_to_the_next_record(tmp_path: Path) -> None:
    members = {"a.png": _png(1), "b.png": b"broken", "c.png": _png(3, side=15), "d.png": _png(4)}
    _write_shard(tmp_path / "one.tar", members)
    data = Data(source="webdataset", path=(str(tmp_path / "one.tar"),))
    assert _colours(data, tmp_path, range(5)) == [1, 4, 4, 4, 1]
    (line,) = (tmp_path / QUARANTINE_FILE).read_text().splitlines()
    assert line.startswith(f"{tmp_path / 'one.tar'}:b.png\t")


def test_too_many_small_or_damaged_pictures_stop(tmp_path: Path) -> None:
    _write_shard(tmp_path / "small.tar", {f"{i}.png": _png(1, side=9) for i in range(60)})
    with pytest.raises(DataError, match="51 of 51 streamed pictures are smaller than the crop of 16 x 16"):
        _colours(Data(source="webdataset", path=(str(tmp_path / "small.tar"),)), tmp_path, range(1))
    _write_shard(tmp_path / "bad.tar", {f"{i}.png": b"x" for i in range(4)})
    with pytest.raises(DataError, match="2 of 100 pictures are damaged"):
        _colours(Data(source="webdataset", path=(str(tmp_path / "bad.tar"),)), tmp_path, range(1))


def test_shards_that_cannot_be_read_are_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none-1\.tar does not exist"):
        expand_shards((str(tmp_path / "none-{1..2}.tar"),))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no shards in"):
        expand_shards((str(tmp_path / "empty"),))
    (tmp_path / "text.tar").write_text("not a tar file")
    with pytest.raises(DataError, match=r"text\.tar cannot be read"):
        list(read_shard(str(tmp_path / "text.tar")))
    _write_shard(tmp_path / "captions.tar", {"a.txt": b"a"})
    with pytest.raises(DataError, match="no pictures in the stream"):
        _colours(Data(source="webdataset", path=(str(tmp_path / "captions.tar"),)), tmp_path, range(1))
    assert expand_shards((str(shards),)) == expand_shards((str(shards / "train-*.tar"),))


class _FailsOnce(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, but cuts the first answer in half."""

    failed = False

    def copyfile(self, source: io.BufferedReader, outputfile: io.BufferedWriter) -> None:  # type: ignore[override]
        data = source.read()
        if not _FailsOnce.failed:
            _FailsOnce.failed = True
            data = data[: len(data) // 2]
        outputfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(shards: Path) -> Iterator[str]:
    handler = functools.partial(_FailsOnce, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_broken_connection_is_taken_up_again(
    shards: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tudsr_train.data.streaming.SECONDS_BETWEEN_TRIES", 0.0)
    local = [read() for _, read in read_shard(str(shards / "train-002.tar"))]
    assert [read() for _, read in read_shard(f"{server}/train-002.tar")] == local
    with pytest.raises(DataError, match="404"):
        list(read_shard(f"{server}/none.tar"))


def test_a_hugging_face_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the [stream] extra brings datasets")
    (tmp_path / "set").mkdir()
    for part in range(2):
        rows = {"picture": [{"bytes": _png(10 * part + k), "path": None} for k in range(3)]}
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(picture=datasets.Image()))
        table.to_parquet(tmp_path / "set" / f"train-{part}.parquet")
    data = Data(source="huggingface", path=(str(tmp_path / "set"),), column="picture")
    assert _colours(data, tmp_path, range(8)) == [0, 10, 1, 11, 2, 12, 0, 10]
    with pytest.raises(DataError, match="column image"):
        _colours(Data(source="huggingface", path=(str(tmp_path / "set"),)), tmp_path, range(1))
