"""What is logged before Detectron2 has set up its log: onto the console, and later into it."""

import contextlib
import logging
import sys
from collections.abc import Iterator

from ..console_log import for_the_log
from ..torchrun import is_first_process


@contextlib.contextmanager
def log_on_console() -> Iterator[None]:
    """Print what Detectron2's logger and this package's say, a line each, unless a log is set up.

    The first process does. ``default_setup`` finds the logger as it was.
    """
    logger = logging.getLogger("detectron2")
    if logger.handlers:
        yield
        return
    handler: logging.Handler = logging.NullHandler()
    if is_first_process():
        handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        logging.Formatter(
            "[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%m/%d %H:%M:%S"
        )
    )
    level = logger.level
    logger.addHandler(handler)
    logger.addHandler(for_the_log)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.removeHandler(for_the_log)
        logger.setLevel(level)
