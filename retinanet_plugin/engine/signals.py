"""Ctrl-C (SIGINT) and SIGTERM: a training ends after the step that runs, all else at once."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

import torch
from detectron2.utils import comm
from torch import distributed

from .torchrun import is_first_process, may_start_anew, others_failed

STOPS = (signal.SIGINT, signal.SIGTERM)
# Processes that were launched together get a signal from the launching one and from others too.
_SAME_S = 2.0
# Longer than torchrun takes to end the processes beside one that has failed.
_ENDED_S = 3.0


class Stopped(SystemExit):
    """A signal ends this process, with status 130 (SIGINT) or 143 (SIGTERM).

    Attributes:
        number: of the signal.
        how_to_go_on: what :func:`stop_signals` prints, once, on stderr.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.how_to_go_on = "there was nothing to save"


class _Signals:
    """What has arrived in this process, and whether code runs that is not to be interrupted."""

    def __init__(self) -> None:
        self.owner: int | None = None  # a process that handles signals
        self.arrived: int | None = None
        self.was_told_to_end = False  # also after stop_signals, which forgets what has arrived
        self.since = 0.0
        self.deferred = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner:
            return  # a worker, which ends when its main process does
        if self.arrived is not None and time.monotonic() < self.since + _SAME_S:
            return
        is_first, self.arrived, self.was_told_to_end = self.arrived is None, number, True
        self.since = time.monotonic()
        if not is_first or multiprocessing.parent_process() is None:
            # The second one ends the process even in the middle of a long operation.
            for stop in STOPS:
                signal.signal(stop, signal.SIG_DFL)
        if not is_first:
            os.kill(os.getpid(), number)
        elif not self.deferred:
            raise Stopped(number)

    @contextmanager
    def deferring(self, deferred: bool) -> Iterator[None]:
        before, self.deferred = self.deferred, deferred
        try:
            if not deferred and self.arrived is not None:
                raise Stopped(self.arrived)
            yield
        finally:
            self.deferred = before


_signals = _Signals()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Handle SIGINT and SIGTERM in here; print how to go on and exit with status 130 or 143.

    The first one raises :class:`Stopped` in the main thread at once, or, in
    :func:`after_the_step`, is only noted, see :func:`has_arrived_anywhere`; the second one kills. A
    signal that was ignored before, as of a program in the background, still is.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or _signals.owner == os.getpid():
        yield  # Python handles signals in the main thread alone; or this is done already
        return
    before = {number: signal.getsignal(number) for number in STOPS}
    _signals.owner, _signals.arrived, _signals.was_told_to_end = os.getpid(), None, False
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _signals.handle)
    try:
        yield
    except Stopped as stopped:
        is_launcher = _end_processes(stopped.number)
        # torchrun ends the others with a signal when a process has failed, which is told by then.
        if not is_launcher and is_first_process() and not others_failed():
            name = signal.Signals(stopped.number).name
            also = ", if torchrun does not start it anew" if may_start_anew() else ""
            print(f"stopped by {name}: {stopped.how_to_go_on}{also}", file=sys.stderr, flush=True)
        raise
    finally:
        _signals.owner = _signals.arrived = None
        for number, handler in before.items():
            signal.signal(number, handler)


def after_the_step() -> AbstractContextManager[None]:
    """In here signals are only noted: see :func:`has_arrived_anywhere`."""
    return _signals.deferring(True)


def at_once() -> AbstractContextManager[None]:
    """In here a signal raises :class:`Stopped` where it finds the program, also in a step."""
    return _signals.deferring(False)


def has_arrived_anywhere() -> int | None:
    """The number of the signal that is to end the processes that train together, in all of them."""
    if comm.get_world_size() == 1:
        return _signals.arrived
    number = torch.tensor(_signals.arrived or 0)
    # A tenth of the time that Detectron2's all_gather of objects takes, in each step.
    group = comm._get_global_gloo_group()
    distributed.all_reduce(number, distributed.ReduceOp.MAX, group=group)
    return int(number) or None


def wait_to_be_ended() -> bool:
    """Leave a process that has failed before this one the time to be noticed and told of first.

    Returns:
        bool: whether a signal is to end this process, as it is if others saw to the failure. It may
            have come before, during the step that failed.
    """
    end = time.monotonic() + _ENDED_S
    with after_the_step():
        while time.monotonic() < end and not _signals.was_told_to_end:
            time.sleep(0.05)
    return _signals.was_told_to_end


def _end_processes(number: int) -> bool:
    """A signal to a process that launched others is for all of them; returns whether it did."""
    # Daemons are workers that load data.
    launched = [child for child in multiprocessing.active_children() if not child.daemon]
    for child in launched:
        if child.pid is not None:
            os.kill(child.pid, number)
    for child in launched:
        child.join()
    return bool(launched)
