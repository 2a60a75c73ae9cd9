"""One training at a time in an OUTPUT_DIR: two would write over each other's checkpoints."""

import contextlib
import os
from collections.abc import Iterator

from detectron2.utils import comm

from ..errors import UserError
from ..file_lock import InUse, check_free, only_process

_NAME = ".training.lock"


@contextlib.contextmanager
def only_training_in(output_dir: str) -> Iterator[None]:
    """Hold a folder for a training; the system lets go of it when the process ends, however.

    The first process holds it for all. Where files cannot be locked, nothing is held.

    Args:
        output_dir: ``OUTPUT_DIR``, which exists.

    Raises:
        UserError: another training holds it.
    """
    if not comm.is_main_process():
        yield
        return
    with _in_words(output_dir), only_process(os.path.join(output_dir, _NAME)):
        yield


def refuse_if_in_use(output_dir: str, patience_s: float = 0.0) -> None:
    """
    Args:
        patience_s: seconds for which to wait for the end of the other training.

    Raises:
        UserError: a training holds the folder, of another process.
    """
    with _in_words(output_dir):
        check_free(os.path.join(output_dir, _NAME), patience_s)


@contextlib.contextmanager
def _in_words(output_dir: str) -> Iterator[None]:
    try:
        yield
    except InUse as holder:
        raise UserError(
            f"OUTPUT_DIR {output_dir} is in use by another training ({holder}): set another "
            "OUTPUT_DIR, or wait until that one ends"
        ) from holder
