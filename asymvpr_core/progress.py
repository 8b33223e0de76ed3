"""How long work reports where it is: the core wraps its iterables, the command line draws the bar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Wraps an iterable and reports each item that passes."""

    def __call__(self, items: Iterable[T], description: str, total: int | None = None, completed: int = 0) -> Iterator[T]:
        """Yield `items` unchanged; `total` is their number where known, `completed` how many were done before."""
        ...


def silent(items: Iterable[T], description: str, total: int | None = None, completed: int = 0) -> Iterator[T]:
    """The default: yields the items and reports nothing."""
    yield from items
