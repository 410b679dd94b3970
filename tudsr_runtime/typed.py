"""Plain data, as JSON and YAML give it, read strictly into dataclasses.

An unknown, missing or misfit key is an error that names its place ("stages[0].factor").
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
OMITTED_IF_DEFAULT = {"omitted_if_default": True}
"""Metadata of a dataclass field whose key may always be missing."""
KIND_NAMES = {int: "an integer", float: "a finite number", str: "a string", bool: "true or false"}
KIND_NAMES |= {list: "a list", dict: "an object"}


def parse_json(text: str | bytes) -> Any:
    """JSON as it is in RFC 8259: no key twice, no NaN. Raises ValueError."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def read_typed(
    kind: type[T],
    tree: Any,
    error: Callable[[str], Exception],
    *,
    whole: str,
    defaults: bool = False,
    special: Mapping[Any, Special] | None = None,
) -> T:
    """`tree` as the dataclass `kind`.

    Fields may be int, float, str, bool, another dataclass, one of several, `dict[str, ...]`, a tuple, one of
    these or None, and Any. An int stands for a float too. What a `__post_init__` complains of by ValueError
    gets its place.

    Args:
        error: makes the exception to raise of a message.
        whole: what `tree` is called in a message ("the manifest").
        defaults: whether a key may be missing that has a default.
        special: by annotated type, what reads it in another way.
    """
    return typing.cast(T, Reader(error, whole, defaults, special or {}).read(kind, tree, ""))


@dataclasses.dataclass(frozen=True)
class Reader:
    """What `read_typed` reads with; its arguments."""

    error: Callable[[str], Exception]
    whole: str
    defaults: bool
    special: Mapping[Any, Special]

    def read(self, kind: Any, value: Any, where: str) -> Any:
        """`value`, found at the place `where` (".stages[0].factor"), as a `kind`."""
        return (self.special.get(kind) or Reader.plain)(self, kind, value, where)

    def plain(self, kind: Any, value: Any, where: str) -> Any:
        """Read a value as `read` does, but by none of the special ways on this level."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is types.UnionType:
            absent = value is None and types.NoneType in arguments
            return None if absent else self.read(_likeliest(arguments, value), value, where)
        if origin is tuple:
            return self._tuple(arguments, value, where)
        if origin is dict:
            members = self._typed(dict, value, where)
            return {key: self.read(arguments[1], item, f"{where}.{key}") for key, item in members.items()}
        if dataclasses.is_dataclass(kind):
            return self._dataclass(kind, self._typed(dict, value, where), where)
        return value if kind is Any else self._typed(kind, value, where)

    def _tuple(self, kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
        items = self._typed(list, value, where)
        kinds = (kinds[0],) * len(items) if kinds[-1] is Ellipsis else kinds
        if len(items) != len(kinds):
            raise self.misfit(where, f"must have {len(kinds)} values, not {len(items)}")
        return tuple(
            self.read(kind, item, f"{where}[{index}]")
            for index, (kind, item) in enumerate(zip(kinds, items, strict=True))
        )

    def _dataclass(self, kind: Any, members: dict[str, Any], where: str) -> Any:
        hints = typing.get_type_hints(kind)
        for key in sorted(members.keys() - hints.keys(), key=str):
            import difflib

            near = difflib.get_close_matches(str(key), hints, n=1)
            suggestion = f"; did you mean {near[0]!r}?" if near else ""
            raise self.error(f"unknown key {_short(f'{where}.{key}')!r}{suggestion}")
        optional = {field.name for field in dataclasses.fields(kind) if self._may_be_missing(field)}
        for key in sorted(hints.keys() - members.keys() - optional):
            raise self.error(f"missing key {_short(f'{where}.{key}')!r}")
        values = {key: self.read(hints[key], item, f"{where}.{key}") for key, item in members.items()}
        try:
            return kind(**values)
        except ValueError as error:
            place = where.lstrip(".")
            raise self.error(f"{place}: {error}" if place else str(error)) from None

    def _may_be_missing(self, field: dataclasses.Field[Any]) -> bool:
        return (self.defaults and _has_default(field)) or field.metadata == OMITTED_IF_DEFAULT

    def _typed(self, kind: Any, value: Any, where: str) -> Any:
        if kind is float and type(value) in (int, float):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        elif type(value) is kind:
            return value
        raise self.misfit(where, f"must be {KIND_NAMES[kind]}, not {_shown(value)}")

    def misfit(self, where: str, complaint: str) -> Exception:
        """The error to raise about what is at `where`."""
        return self.error(f"{_short(where) or self.whole} {complaint}")


def _likeliest(kinds: tuple[Any, ...], value: Any) -> Any:
    """Of several dataclasses the one that shares most keys with the value; else the first kind."""
    records = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    if len(records) < 2 or not isinstance(value, dict):
        return kinds[0]
    return max(records, key=lambda kind: len(value.keys() & typing.get_type_hints(kind).keys()))


Special = Callable[[Reader, Any, Any, str], Any]
"""The reader, the annotated type, the value and its place, to an object of that type."""


def _short(where: str) -> str:
    return where.lstrip(".")[:120]


def _shown(value: Any) -> str:
    """A value for a message; of what YAML nests in itself, or names a thousand times, there is no whole."""
    return reprlib.repr(value)[:40] if isinstance(value, (list, tuple, dict)) else repr(str(value)[:40])


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        double = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"duplicate key {double[:120]!r}")
    return found


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")
