"""Where a failure is told: one sentence on the console, the traceback in OUTPUT_DIR/log.txt."""

import contextlib
import functools
import io
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import parent_process
from typing import Any, NoReturn

import tqdm
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ...errors import UserError
from ..console_log import keep_warnings_off_the_console
from ..signals import stop_signals, wait_to_be_ended
from ..torchrun import is_first_to_fail, is_torchrun
from .sentences import is_lost_process, is_own_exit, sentence_of, whose_fault

INTERRUPTED = 130


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Turn exceptions into what a user is to read, and end the process with status 1.

    One of the outside world is a line ``error: ...``, and its traceback goes to ``log.txt``, if
    there is one by then. Any other keeps its traceback, with a line that says whose fault it is.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except ProcessExitedException as error:
        if error.exit_code > 0:  # which has told why itself
            sys.exit(error.exit_code)
        sys.exit(f"error: {sentence_of(error)}")
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not is_own_exit(error):
            raise
        _tell_and_exit(error)


def in_its_own_words(main: Callable[..., Any], *args: Any) -> Any:
    """Call ``main(*args)``, perhaps in a process that ``launch`` has started.

    Raises:
        UserError: an exception of the outside world, as the sentence that the first process is to
            print; the traceback is in the log of this one.
    """
    if parent_process() is None:  # of a single process, one_sentence_errors knows all
        return main(*args)
    keep_console_readable()
    try:
        with stop_signals():
            return main(*args)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not is_own_exit(error):
            raise
        sentence = sentence_of(error)
        if isinstance(error, SystemExit):  # no exception for the first process to print
            _tell_and_exit(error)
        if sentence is None:
            raise
        log = _log_traceback(error)
        if is_lost_process(error):
            wait_to_be_ended()
        raise UserError(_with_details(sentence, log)) from error


@functools.cache  # once is enough
def keep_console_readable() -> None:
    """What libraries and Python print on their own goes to ``log.txt`` alone: see the code.

    For the rest of the process: some come as late as when Python ends.
    """
    _replace_closed_streams()
    _show_any_character()
    keep_warnings_off_the_console()
    # What is logged and raised again is told once, at the end.
    for name in ("detectron2.engine.train_loop", "detectron2.engine.launch"):
        logging.getLogger(name).addFilter(lambda record: not record.exc_info)
    logging.getLogger("iopath.common.download").addFilter(
        lambda record: record.levelno < logging.ERROR
    )
    # The bar of a download that fails at once is not begun.
    tqdm.tqdm.__init__ = functools.partialmethod(tqdm.tqdm.__init__, delay=1)
    threading.excepthook = lambda failed: _note(failed.exc_value, "a thread failed")
    sys.unraisablehook = lambda failed: _note(failed.exc_value, "something was not ended properly")
    logging.Handler.handleError = _leave_out  # type: ignore[method-assign, assignment]


def _replace_closed_streams() -> None:
    """Python has None for what a shell or a daemon has closed, which libraries do not expect.

    And the next file that is opened, a checkpoint perhaps, would take its number, and get what
    libraries print.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.fstat(number)
            except OSError:
                os.dup2(nowhere, number)
            setattr(sys, name, os.fdopen(nowhere, "w"))


def _show_any_character() -> None:
    """Names of files and classes that the console's encoding lacks, or that are in none.

    Python does so on stderr; the program would end in the middle of its output.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _tell_and_exit(error: BaseException) -> NoReturn:
    log = _log_traceback(error)
    if is_torchrun() and not _is_to_tell(error):
        sys.exit(1)
    sentence = sentence_of(error)
    if sentence is None:
        traceback.print_exception(error)
        sys.exit(f"error: {_fault(error, log)}")
    sys.exit(f"error: {_with_details(sentence, log)}")


def _is_to_tell(error: BaseException) -> bool:
    """Whether of the processes of torchrun this one is to say why they fail."""
    if is_lost_process(error) and wait_to_be_ended():
        return False
    return is_first_to_fail()


def _with_details(sentence: str, log: str | None) -> str:
    whose = f"process {comm.get_rank()} of {size}" if (size := comm.get_world_size()) > 1 else ""
    details = "; ".join(filter(None, [whose, f"details: {log}" if log else ""]))
    return f"{sentence} ({details})" if details else sentence


def _fault(error: BaseException, log: str | None) -> str:
    name, also = type(error).__name__, f" (which is in {log} too)" if log else ""
    if own_file := whose_fault(error):
        return (
            f"{name} in {own_file}, which is not of this package: correct it where the traceback "
            f"above goes through it{also}"
        )
    return (
        f"{name}, a fault of retinanet_plugin and not of your data or config: report it with the "
        f"traceback above{also}, your config and what python -m detectron2.utils.collect_env prints"
    )


def _log_files() -> list[logging.StreamHandler]:
    return [
        handler
        for handler in logging.getLogger("detectron2").handlers
        if isinstance(handler, logging.StreamHandler)
        and "log.txt" in str(getattr(handler.stream, "name", ""))
    ]


def _log_traceback(error: BaseException) -> str | None:
    """Write the traceback into ``log.txt``; return its path, or None if there is none."""
    path = None
    for handler in _log_files():
        record = logging.LogRecord(
            "retinanet_plugin", logging.ERROR, __file__, 0, "the process ends:", (),
            (type(error), error, error.__traceback__),
        )  # fmt: skip
        with contextlib.suppress(OSError, ValueError):
            handler.stream.write(handler.format(record) + "\n")
            handler.stream.flush()
            path = handler.stream.name
    return path


def _note(error: BaseException | None, what: str) -> None:
    if error is None:
        return
    print(
        f"WARNING: {what}: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr
    )
    _log_traceback(error)


def _leave_out(handler: logging.Handler, record: logging.LogRecord) -> None:
    """In the place of logging's own traceback: the training goes on without the log."""
    error = sys.exc_info()[1]
    _note(error, f"{handler} cannot be written, and is left out from here on")
    if isinstance(error, OSError):  # and not of a record that cannot be formatted
        handler.addFilter(lambda record: False)
