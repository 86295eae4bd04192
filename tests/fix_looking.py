"""Compares what stats() and health() give with the types that they promise."""

import types
import typing
from typing import Any

__all__ = ["assert_is_typed", "members"]


def assert_is_typed(value: Any, kind: Any, where: str = "") -> None:
    """Compare with a TypedDict, list[...], ... | None or plain type, all the way."""
    if typing.is_typeddict(kind):
        assert type(value) is dict, where
        hints = typing.get_type_hints(kind)
        assert set(value) == set(hints), where
        for name, hint in hints.items():
            assert_is_typed(value[name], hint, f"{where}.{name}")
        return
    origin = typing.get_origin(kind)
    if origin is list:
        assert type(value) is list, where
        (item,) = typing.get_args(kind)
        for number, each in enumerate(value):
            assert_is_typed(each, item, f"{where}[{number}]")
    elif origin in (types.UnionType, typing.Union):
        kinds = [each for each in typing.get_args(kind) if each is not type(None)]
        if value is not None:
            assert_is_typed(value, kinds[0], where)
    else:
        assert type(value) is kind, f"{where}: {value!r}"


def members(kind: Any) -> dict[str, str]:
    """Give the members of a TypedDict: name -> type, as the texts write it."""
    return {name: _words(hint) for name, hint in typing.get_type_hints(kind).items()}


def _words(hint: Any) -> str:
    if typing.is_typeddict(hint):
        return "dict"
    if typing.get_origin(hint) is list:
        (item,) = typing.get_args(hint)
        return f"list of {_words(item)}"
    return hint.__name__ if isinstance(hint, type) else str(hint)
