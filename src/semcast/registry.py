"""One small registry for systems, channels, modems, metrics, goals and allocators."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from semcast.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps public names to objects; a value may be given as ``"module:attribute"`` and is imported when first used.

    Lazy values keep ``semcast --help`` fast and heavy libraries out of what does not use them.

    Args:
        kind: singular noun for messages, e.g. ``"channel"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T | str] = {}

    def add(self, name: str, target: str) -> None:
        """Register ``name`` lazily as ``"package.module:attribute"``."""
        if name in self._items:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._items[name] = target

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form: register the object under ``name``."""

        def wrap(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return wrap

    def get(self, name: str) -> T:
        """Return the object called ``name``; raises :class:`UnknownNameError`."""
        if name not in self._items:
            raise UnknownNameError(self.kind, name, self._items)
        item = self._items[name]
        if isinstance(item, str):
            module, attribute = item.split(":")
            resolved: T = getattr(importlib.import_module(module), attribute)
            self._items[name] = resolved
            return resolved
        return item

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)
