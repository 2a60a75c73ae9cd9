"""What of the log is on the console: the facts that matter, in a page. ``log.txt`` has all."""

import contextlib
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from typing import TextIO

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from .failures.sentences import is_of_a_user
from .torchrun import is_first_process

# Loggers, and how their messages begin that are for log.txt alone: the environment, the command
# line, the config, the model, how data are kept in memory, and what an evaluation is doing.
_FOR_THE_LOG = (
    ("detectron2", ""),
    ("detectron2.engine.defaults", "Model:"),
    ("detectron2.data.common", ""),
    ("detectron2.data.dataset_mapper", ""),
    ("detectron2.data.build", "Using training sampler"),
    ("detectron2.evaluation.evaluator", "Total inference pure compute time"),
    ("detectron2.evaluation.coco_evaluation", "Preparing results"),
    ("detectron2.evaluation.coco_evaluation", "Evaluating predictions"),
)
_MOST_LINES = 60  # of a message, such as a table of classes
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_DEPRECATED = re.compile(r"deprecat|in an upcoming release|will be removed", re.IGNORECASE)

# What is said before there is a log.txt waits here for it; then each record goes on at once.
for_the_log = MemoryHandler(1000, flushLevel=logging.NOTSET, flushOnClose=False)


def set_up_console(output_dir: str) -> None:
    """Set up Detectron2's log as ``default_setup`` will, with a console that shows a page of it.

    Args:
        output_dir: of the ``log.txt``, to which goes what was kept for it.
    """
    rank = comm.get_rank()
    # These are the calls of default_setup, which finds the loggers as they are left here.
    for logger in (
        setup_logger(output_dir, distributed_rank=rank, name="fvcore"),
        setup_logger(output_dir, distributed_rank=rank),
    ):
        for handler in logger.handlers:
            stream = getattr(handler, "stream", None)
            if stream is not sys.stdout:
                for_the_log.setTarget(handler)
            elif not isinstance(handler.formatter, _ConsoleFormatter):
                handler.addFilter(_Page())
                handler.setFormatter(_ConsoleFormatter(handler.formatter, stream.isatty()))
    for_the_log.flush()


def keep_warnings_off_the_console() -> None:
    """What nobody who trains can mend goes to ``log.txt`` alone; for the rest of the process.

    That is: warnings of deprecated functions, unless a file of the user's own calls them, and those
    of other processes than the first; that a PyTorch for GPUs finds none, and ends the processes
    beside one that failed. Other warnings are in ``log.txt``, too, and on the console once.
    """
    for name in ("py.warnings", "torch.utils.cpp_extension", "torch.multiprocessing.spawn"):
        logger = logging.getLogger(name)
        logger.propagate, logger.handlers[:] = False, [for_the_log]
    shown = warnings.showwarning
    told: set[str] = set()  # each loader of a training gives the same one

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is None:
            text = warnings.formatwarning(message, category, filename, lineno, line)
            logging.getLogger("py.warnings").warning(text.rstrip())
        files = [frame.filename for frame in traceback.extract_stack()[:-1]]
        is_old = issubclass(
            category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
        ) or _DEPRECATED.search(str(message))
        is_shown = is_first_process() and (not is_old or is_of_a_user(files))
        is_repeated = str(message) in told
        told.add(str(message))
        if file is not None or (is_shown and not is_repeated):
            shown(message, category, filename, lineno, file, line)

    warnings.showwarning = show


class _Page(logging.Filter):
    """Holds back what is for the log alone, and facts of a data set that were said before."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.INFO:
            return True
        message = record.getMessage()
        if any(record.name == name and message.startswith(text) for name, text in _FOR_THE_LOG):
            return False
        if record.name == "detectron2.data.build":
            is_new = message not in self._shown
            self._shown.add(message)
            return is_new
        return True


class _ConsoleFormatter(logging.Formatter):
    """Another formatter's text: of a long one the beginning, colours for a terminal alone."""

    def __init__(self, usual: logging.Formatter | None, has_colours: bool) -> None:
        super().__init__()
        self._usual = usual or logging.Formatter()
        self._has_colours = has_colours

    def format(self, record: logging.LogRecord) -> str:
        text = self._usual.format(record)
        lines = text.splitlines()
        if len(lines) > _MOST_LINES:
            more = len(lines) - _MOST_LINES
            text = "\n".join([*lines[:_MOST_LINES], f"... {more} more lines are in log.txt"])
        return text if self._has_colours else _COLOURS.sub("", text)


@contextlib.contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Nothing up to ``level`` is logged in here: it is only tried or drawn, of no training."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)
