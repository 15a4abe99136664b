"""Progress of long work: a bar on a terminal, a line in a log."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """The items as they come.

    Args:
      items: whatever is worked on.
      title: what is done.
      total: number of items, where they do not tell.
    """
    if not sys.stderr.isatty():
        print(title, file=sys.stderr, flush=True)
    return iter(tqdm.tqdm(items, desc=title, total=total, leave=False, disable=None))
