"""A function of each of many files: in processes, with progress, in the files' order."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

# Fewer take less time than processes to start.
_MIN_ITEMS = 2000
# More than the processors, since storage is waited for.
_PROCESSES = min(8, 2 * (os.cpu_count() or 1))
# Seconds without a progress bar.
_PATIENCE = 2


def each_of(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    what: str,
    min_items: int = _MIN_ITEMS,
    chunk: int = 64,
) -> Iterator[Result]:
    """``function(item)`` of each item, in order.

    Args:
        function: raises nothing; does not use torch, whose threads a forked process lacks.
        what: is done, for the progress bar, which is shown when it takes some time.
        min_items: fewer are done in this process.
        chunk: items that a process takes at once: after Ctrl-C they are waited for.
    """
    with tqdm(
        total=len(items), desc=what, delay=_PATIENCE, mininterval=_bar_interval(), file=sys.stderr
    ) as bar:
        for result in _results(function, items, min_items, chunk):
            yield result
            bar.update()


def _results(
    function: Callable[[Item], Result], items: Sequence[Item], min_items: int, chunk: int
) -> Iterator[Result]:
    num_done = 0
    # Elsewhere processes are started anew, which takes longer than most data sets.
    if len(items) >= min_items and sys.platform == "linux":
        try:
            executor = ProcessPoolExecutor(
                _PROCESSES, multiprocessing.get_context("fork"), _ignore_ctrl_c
            )
            try:
                for result in executor.map(function, items, chunksize=chunk):
                    num_done += 1
                    yield result
            finally:
                executor.shutdown(wait=True, cancel_futures=True)
        except (BrokenProcessPool, OSError):
            pass  # no room for processes: this one goes on
    for item in items[num_done:]:
        yield function(item)


def _ignore_ctrl_c() -> None:
    """It goes to all processes of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _bar_interval() -> float:
    return 0.1 if sys.stderr.isatty() else 10.0
