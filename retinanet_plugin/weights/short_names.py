"""Hundreds of names of parameters in few words, for one line of a log."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain

from ..errors import listed


def groups(names: Iterable[str], of_all: Iterable[str]) -> str:
    """``names`` in short: the largest modules of ``of_all`` that hold nothing else."""
    names = list(names)
    chosen, present = (Counter(chain(*map(_within, some))) for some in (names, of_all))
    found = [next(p for p in _within(name) if chosen[p] == present[p]) for name in sorted(names)]
    return listed(list(dict.fromkeys(found)))


def _within(name: str) -> list[str]:
    """The modules that hold a tensor, the largest first, and itself."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def prefixes(names: Iterable[str]) -> list[str]:
    """The first two words of each name, each once."""
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
