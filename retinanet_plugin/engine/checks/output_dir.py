"""Whether OUTPUT_DIR can be written, found out without making it."""

import os

from detectron2.utils.file_io import PathManager

from ...errors import UserError
from ...whole_files import refuse_bytes, try_folder
from ..checkpoints.file_names import FINAL_WEIGHTS, LAST_CHECKPOINT, METRICS

# What a training writes over, or adds to.
_FILES = ("config.yaml", LAST_CHECKPOINT, "log.txt", METRICS, FINAL_WEIGHTS)


def check_output_dir(folder: str) -> None:
    """Refuse an ``OUTPUT_DIR`` that cannot be made or written. Nothing is left behind.

    Raises:
        UserError: it is empty, a file, below a file, or not to be written; or it begins with what
            only a shell replaces, ``~`` or ``$``; or its name is no text.
    """
    if not folder.strip():
        raise UserError(f"OUTPUT_DIR is {folder!r}: name a folder, such as ./output")
    if folder.startswith(("~", "$")):
        raise UserError(
            f"OUTPUT_DIR is {folder}, of which only a shell replaces the {folder[0]}: write the "
            "path in full"
        )
    refuse_bytes(folder, "OUTPUT_DIR")
    if "://" in folder:  # not of this machine
        return
    shown = folder if folder.isprintable() else repr(folder)
    try:
        _try_writing(os.path.abspath(PathManager.get_local_path(folder)))
    except (OSError, ValueError) as error:  # ValueError: characters that no path may have
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"OUTPUT_DIR {shown} cannot be written ({reason}): set OUTPUT_DIR to a folder that you "
            "can write"
        ) from error


def _try_writing(folder: str) -> None:
    """
    Raises:
        OSError: ``folder`` cannot be made, or a file in it cannot be written.
    """
    try_folder(folder)
    for name in _FILES:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            raise IsADirectoryError(f"{name} in it is a folder")
        if os.path.exists(path) and not os.access(path, os.W_OK):
            raise PermissionError(f"{name} in it may not be written")
