"""Processes that load data, when somebody ends the program."""

import multiprocessing
import os
import signal
import sys
import threading
from types import TracebackType


def leave_signals_to_main_process(worker_id: int = 0) -> None:
    """Ignore what is meant for the main process; to be called in a worker, as ``worker_init_fn``.

    Ctrl-C and job schedulers signal all processes of a program. The main process decides what is
    done then, and may need another batch for it. Its own SIGTERM still ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_by_main_process, daemon=True).start()
    sys.excepthook = _report_unless_main_process_left


def _end_by_main_process() -> None:
    main = multiprocessing.parent_process()
    while main is None or signal.sigwaitinfo({signal.SIGTERM}).si_pid != main.pid:
        pass
    os._exit(0)


def _report_unless_main_process_left(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Tensors are handed over by a thread; one that the main process takes as it ends is lost."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)
