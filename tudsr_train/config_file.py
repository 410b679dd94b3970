"""Configuration files: YAML to typed dataclasses and back, with overrides; an unknown key is an error."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import reprlib
import textwrap
import types
import typing
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tudsr_runtime.errors import TrainingError
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


def load_config(kind: type[T], path: Path, overrides: list[str]) -> T:
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
    return _build(kind, tree, str(path))


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


def _build(kind: type[T], tree: Any, where: str) -> T:
    return kind(**_values(kind, tree, where))


def _values(kind: type, tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise TrainingError(f"{where}: expected keys and values, found {_shown(tree)}")
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            raise TrainingError(
                f"{where}: unknown key {_shown(key)}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return {
        key: _recipe(value, f"{where}: {key}", _preset(kind, key))
        if hints[key] == Recipe
        else _convert(hints[key], value, f"{where}: {key}")
        for key, value in tree.items()
    }


def _preset(kind: type, key: str) -> str:
    """The recipe that a degradation stands on which names none: that of the field's default."""
    (field,) = (one for one in dataclasses.fields(kind) if one.name == key)
    assert field.default_factory is not dataclasses.MISSING
    return str(field.default_factory().preset)


def _recipe(tree: Any, where: str, default: str) -> Recipe:
    """A degradation, or a list of them with a `weight` each."""
    if isinstance(tree, list):
        weights, trees = _weighted(tree, where)
        parts = (_plain_recipe(one, f"{where}[{i}]", default) for i, one in enumerate(trees))
        return MixedRecipe(tuple(parts), weights)
    return _plain_recipe(tree, where, default)


def _pictures(tree: Any, where: str) -> Pictures:
    """A source, or a list of them with a `weight` each."""
    if isinstance(tree, list):
        weights, trees = _weighted(tree, where)
        return MixedData(tuple(_build(Data, one, f"{where}[{i}]") for i, one in enumerate(trees)), weights)
    return _build(Data, tree, where)


def _weighted(trees: list[Any], where: str) -> tuple[tuple[float, ...], list[Any]]:
    """Weights of a mixture's parts, 1 where none is given, and the parts without them."""
    weights, parts = [], []
    for i, tree in enumerate(trees):
        weight = tree.get("weight", 1.0) if isinstance(tree, dict) else 1.0
        weights.append(_convert(float, weight, f"{where}[{i}]: weight"))
        parts.append({k: v for k, v in tree.items() if k != "weight"} if isinstance(tree, dict) else tree)
    return tuple(weights), parts


def _plain_recipe(tree: Any, where: str, default: str) -> PlainRecipe:
    """The name of a preset, or `preset: NAME` and the values that differ from it."""
    tree = {"preset": tree} if isinstance(tree, str) else tree
    name = tree.get("preset", default) if isinstance(tree, dict) else ""
    if not isinstance(name, str) or name not in PRESETS:
        raise TrainingError(f"{where} must name a preset ({', '.join(PRESETS)}), not {_shown(name or tree)}")
    preset = PRESETS[name]
    return dataclasses.replace(preset, **_values(type(preset), tree, where))


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint == Pictures:
        return _pictures(value, where)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        return _convert_tuple(typing.get_args(hint), value, where)
    if isinstance(hint, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return _float(value, where)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TrainingError(f"{where} must be of type {hint.__name__}, not {_shown(value)}")
    return value


def _float(value: float | str, where: str) -> float:
    """A finite number; YAML 1.1 reads 1e-3 as text."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except ValueError:
        raise TrainingError(f"{where} must be of type float, not {_shown(value)}") from None
    if not math.isfinite(number):
        raise TrainingError(f"{where} must be a finite number, not {_shown(value)}")
    return number


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if args == (str, ...) and isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise TrainingError(f"{where} must be a list, not {_shown(value)}")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise TrainingError(f"{where} must have {len(args)} values, not {len(value)}")
    return tuple(
        _convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True))
    )


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
