"""Configuration files: YAML to typed dataclasses and back, with overrides; an unknown key is an error."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import itertools
import reprlib
import textwrap
import typing
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tudsr_runtime.errors import TrainingError
from tudsr_runtime.typed import Reader, read_typed
from tudsr_train.data.recipes import PRESETS, MixedRecipe, PlainRecipe, Recipe
from tudsr_train.data.sources import Data, MixedData, Pictures

T = TypeVar("T")
CONFIGS = "configs"
"""Folder of the shipped configurations."""
MOST_BYTES = 2**20
"""Greatest size of a configuration."""
UNREADABLE = (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError)
"""What reading YAML raises: a date of a 13th month is a ValueError."""


def find_config(given: Path) -> tuple[Path, str]:
    """The file itself; else the shipped configuration of that name, such as `nano/stage1`, and what to say.

    `configs/nano/stage1.yaml` names it too, where there is no such file. What is neither comes back as it is.
    """
    name = given.as_posix().removeprefix(f"{CONFIGS}/").removesuffix(".yaml")
    found = shipped_configs().get(name)
    if given.exists() or found is None:
        return given, ""
    return found, f"configuration {name}: {found}"


def shipped_configs() -> dict[str, Path]:
    """The configurations that travel with the package, by name."""
    folder = Path(__file__).with_name(CONFIGS)
    if not folder.is_dir():  # a checkout, which has them at its root
        folder = Path(__file__).parents[1] / CONFIGS
    files = sorted(folder.glob("*/*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def load_config(kind: type[T], path: Path, overrides: Sequence[str]) -> T:
    """Read a YAML file into `kind`, then apply `key.sub=value` overrides.

    Raises TrainingError (exit 10) for a missing file, an unknown key (naming the nearest known one) or a
    wrong type.
    """
    try:
        tree = _parse(_read(path))
    except FileNotFoundError as error:
        hint = f"a file, or one of {', '.join(shipped_configs())}"
        raise TrainingError(f"{path}: no such config file", hint=hint) from error
    except UNREADABLE as error:
        raise TrainingError(f"{path}: not a readable YAML file: {_why(error)}") from error
    tree = {} if tree is None else tree
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise TrainingError(f"--set {override}: expected key=value")
        try:
            _assign(tree, key.strip().split("."), _parse(value))
        except UNREADABLE as error:
            raise TrainingError(f"--set {override[:80]}: {_why(error)}") from error
    return read_typed(
        kind,
        _with_presets(kind, tree),
        lambda message: TrainingError(f"{path}: {message}"),
        whole="the configuration",
        defaults=True,
        special=SPECIAL,
    )


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once: of two, the first would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if isinstance(key, Hashable) and keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {_shown(key)} stands there twice")
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)


def _read(path: Path) -> str:
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES // 1024} KiB")
    return content.decode("utf-8")


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark
        return error.problem + (f", line {mark.line + 1}" if mark else "")
    return str(error).splitlines()[0]


def _shown(value: Any) -> str:
    """A value of a stranger's file for a message; what is nested in itself has no end."""
    return reprlib.repr(value)[:80]


def _assign(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    if not all(keys):
        raise TrainingError(f"--set {'.'.join(keys)}: a key is empty")
    for number, key in enumerate([*keys[:-1], ""]):
        if not isinstance(tree, dict):
            raise TrainingError(
                f"--set {'.'.join(keys)}: {'.'.join(keys[:number]) or 'the file'} is {_shown(tree)}"
            )
        tree = tree.setdefault(key, {}) if key else tree
    tree[keys[-1]] = value


def _with_presets(kind: type, tree: Any) -> Any:
    """`tree` with a preset in every degradation that names none: that of the field's default."""
    if not isinstance(tree, dict):
        return tree
    hints, fields = typing.get_type_hints(kind), typing.cast(Any, dataclasses.fields(kind))
    defaults = {one.name: one.default_factory().preset for one in fields if hints[one.name] == Recipe}
    return tree | {name: _named(tree[name], preset) for name, preset in defaults.items() if name in tree}


def _named(tree: Any, preset: str) -> Any:
    if isinstance(tree, list):
        return [{"preset": preset} | part if isinstance(part, dict) else part for part in tree]
    return {"preset": preset} | tree if isinstance(tree, dict) else tree


def _recipe(reader: Reader, kind: Any, tree: Any, where: str) -> Recipe:  # noqa: ARG001
    """A degradation, or a list of them with a `weight` each."""
    if isinstance(tree, list):
        return MixedRecipe(*_mixture(reader, _plain_recipe, tree, where))
    return _plain_recipe(reader, tree, where)


def _pictures(reader: Reader, kind: Any, tree: Any, where: str) -> Pictures:  # noqa: ARG001
    """A source, or a list of them with a `weight` each."""
    if isinstance(tree, list):
        return MixedData(*_mixture(reader, _source, tree, where))
    return _source(reader, tree, where)


def _mixture(
    reader: Reader, part: Callable[[Reader, Any, str], T], trees: list[Any], where: str
) -> tuple[tuple[T, ...], tuple[float, ...]]:
    """The parts of a mixture, and their weights: 1 where none is given."""
    weights, parts = [], []
    for i, tree in enumerate(trees):
        place, own = f"{where}[{i}]", dict(tree) if isinstance(tree, dict) else tree
        weight = own.pop("weight", 1.0) if isinstance(own, dict) else 1.0
        weights.append(reader.read(float, weight, f"{place}.weight"))
        parts.append(part(reader, own, place))
    return tuple(parts), tuple(weights)


def _source(reader: Reader, tree: Any, where: str) -> Data:
    return typing.cast(Data, reader.read(Data, tree, where))


def _plain_recipe(reader: Reader, tree: Any, where: str) -> PlainRecipe:
    """The name of a preset, or `preset: NAME` and the values that differ from it."""
    tree = {"preset": tree} if isinstance(tree, str) else tree
    name = tree.get("preset") if isinstance(tree, dict) else None
    if not isinstance(name, str) or name not in PRESETS:
        known = ", ".join(PRESETS)
        raise reader.misfit(where, f"must name a preset ({known}), not {_shown(name or tree)}")
    preset = PRESETS[name]
    return typing.cast(PlainRecipe, reader.read(type(preset), to_tree(preset) | tree, where))


def _number(reader: Reader, kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    return reader.plain(kind, value, where)


def _texts(reader: Reader, kind: Any, value: Any, where: str) -> Any:
    """Several texts, or one that stands for a list of it."""
    return reader.plain(kind, [value] if isinstance(value, str) else value, where)


SPECIAL = {Recipe: _recipe, Pictures: _pictures, float: _number, tuple[str, ...]: _texts}
"""What a configuration may write in another way than JSON."""


def to_tree(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, lists and numbers, as JSON and YAML write them."""
    return {one.name: _plain(getattr(config, one.name)) for one in _own_first(type(config))}


def _own_first(kind: type) -> list[dataclasses.Field[Any]]:
    """Fields in the order of a file: those of the class, then those of its parent."""
    inherited = getattr(kind.__base__, "__dataclass_fields__", {})
    return sorted(dataclasses.fields(kind), key=lambda one: one.name in inherited)


def _plain(value: Any) -> Any:
    if isinstance(value, (MixedData, MixedRecipe)):
        return [{"weight": w, **to_tree(part)} for w, part in zip(value.weights, value.parts, strict=True)]
    if dataclasses.is_dataclass(value):
        return to_tree(value)
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def to_yaml(config: Any, indent: str = "") -> str:
    """A resolved configuration as a YAML file that `load_config` reads, each key under what it means."""
    lines = []
    meanings = docstrings(type(config))
    for one in _own_first(type(config)):
        value = getattr(config, one.name)
        lines += [f"{indent}# {line}" for line in meanings.get(one.name, "").splitlines()]
        if isinstance(value, (MixedData, MixedRecipe)):
            lines += [f"{indent}{one.name}:", *(f"{indent}- {_on_one_line(part)}" for part in _plain(value))]
        elif dataclasses.is_dataclass(value):
            lines += [f"{indent}{one.name}:", to_yaml(value, indent + "  ").rstrip("\n")]
        else:
            # in brackets, so that a number, a text and a list are all written on one line
            lines.append(f"{indent}{one.name}: {_on_one_line([_plain(value)])[1:-1]}")
    return "\n".join(lines) + "\n"


def _on_one_line(tree: Any) -> str:
    return yaml.safe_dump(tree, default_flow_style=True, width=10_000, sort_keys=False).strip()


def docstrings(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, or of its parents, by the field's name."""
    found = {}
    for one in reversed(kind.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(body, ast.ClassDef)
        for above, below in itertools.pairwise(body.body):
            if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name):
                text = below.value if isinstance(below, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found[above.target.id] = inspect.cleandoc(text.value)
    return found
