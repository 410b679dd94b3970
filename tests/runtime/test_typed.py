from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tudsr_runtime.typed import Reader, parse_json, read_typed


@dataclass(frozen=True)
class Inner:
    size: int
    ratio: float = 0.5
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size must not be negative, not {self.size}")


@dataclass(frozen=True)
class Outer:
    inners: dict[str, Inner]
    pair: tuple[int, float] = (1, 2.0)
    last: Inner | None = None
    on: bool = False


inners = st.builds(
    Inner, st.integers(0), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.text()).map(tuple)
)
outers = st.builds(Outer, st.dictionaries(st.text(), inners), last=st.none() | inners, on=st.booleans())


def read(tree: Any, **options: Any) -> Outer:
    return read_typed(Outer, tree, KeyError, whole="the file", **options)


@given(outers)
def test_what_is_written_is_read(outer: Outer) -> None:
    assert read(parse_json(json.dumps(dataclasses.asdict(outer)))) == outer


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("inners"), inner),
    )
)
def test_anything_else_is_the_error_that_was_named(tree: Any) -> None:
    with contextlib.suppress(KeyError):
        assert isinstance(read(tree, defaults=True), Outer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inners": 3}, "inners must be an object, not '3'"),
        ({"inners": {"a": {"size": True}}}, "inners.a.size must be an integer, not 'True'"),
        ({"inners": {"a": {"size": -1}}}, "inners.a: size must not be negative, not -1"),
        ({"inners": {"a": {"size": 1, "rati": 2}}}, "unknown key 'inners.a.rati'; did you mean 'ratio'?"),
        ({"inners": {"a": {}}}, "missing key 'inners.a.size'"),
        ({"last": {"size": 1, "ratio": float("nan")}}, "last.ratio must be a finite number, not 'nan'"),
        ({"last": {"size": 1, "names": ["a", 2]}}, "last.names[1] must be a string, not '2'"),
        ({"pair": [1]}, "pair must have 2 values, not 1"),
        ({"on": 1}, "on must be true or false, not '1'"),
    ],
)
def test_every_error_names_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(KeyError) as caught:
        read({"inners": {}, **change}, defaults=True)
    assert caught.value.args == (message,)


def test_a_type_may_be_read_in_a_way_of_the_caller_s() -> None:
    def one(reader: Reader, kind: Any, value: Any, where: str) -> Any:
        if value == "none":
            raise reader.misfit(where, "must be some")
        return reader.plain(kind, [value] if isinstance(value, str) else value, where)

    def found(names: str) -> Outer:
        tree = {"inners": {"a": {"size": 1, "names": names}}}
        return read(tree, defaults=True, special={tuple[str, ...]: one})

    assert found("b").inners["a"].names == ("b",)
    with pytest.raises(KeyError, match=r"inners\.a\.names must be some"):
        found("none")


def test_defaults_are_taken_only_where_that_is_said() -> None:
    assert read({"inners": {}}, defaults=True) == Outer({})
    with pytest.raises(KeyError, match="missing key 'last'"):
        read({"inners": {}})


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000, b"\xff"])
def test_json_that_means_nothing_certain_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
