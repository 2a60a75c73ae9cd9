"""Threads that each see to an image, with a share of PyTorch's threads each."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# Each holds the features of an image: some hundred MB.
_MOST_WORKERS = 8
_starting = threading.Lock()


class Workers:
    """Threads that call a function of each item, in the order of the items.

    A network runs faster on two images with a thread each than on one image with two threads,
    which wait for each other in every layer.
    """

    def __init__(self, share_torch: bool) -> None:
        """``share_torch``: whether what they call computes on the CPU with PyTorch, whose threads
        they then share out; otherwise they only read ahead."""
        threads = torch.get_num_threads()
        self.count = min(_MOST_WORKERS, threads if share_torch else os.cpu_count() or 1)
        self._threads_of_each = max(1, threads // self.count) if share_torch else 1
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0  # that started it: a fork has no threads of another

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """``function(item)`` of each item, in order; some items ahead of what is asked for."""
        pool = self._started()
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * self.count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _started(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._process != os.getpid():
                self._pool = _start(self.count, self._threads_of_each)
                self._process = os.getpid()
            return self._pool


def _start(count: int, torch_threads: int) -> ThreadPoolExecutor:
    """Start all threads now, since PyTorch keeps two numbers of threads.

    One is of each thread that computes, the other is what threads begin with that are new. Both
    are set, and the second is put back.
    """
    with _starting:
        before = torch.get_num_threads()
        barrier = threading.Barrier(count + 1)

        def begin() -> None:
            torch.set_num_threads(torch_threads)
            barrier.wait()

        pool = ThreadPoolExecutor(count, "predictor", begin)
        for _ in range(count):  # the threads are not idle, so that each of these starts one
            pool.submit(int)
        barrier.wait()
        torch.set_num_threads(before)
    return pool
