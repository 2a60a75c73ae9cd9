"""What happened, as one sentence with the remedy; and whose fault it is where that is not known."""

import re
import traceback
from pathlib import Path

import detectron2
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ...errors import UserError
from .kinds import FILE, KINDS, MEMORY, OUTSIDE, PLACES, PROCESSES, WORKER

PACKAGE = Path(__file__).parents[2]
# Also where it is a checkout.
_DETECTRON2 = Path(detectron2.__file__).parent
_LIBRARIES = re.compile(
    r"site-packages/(torch|numpy|PIL|cv2|iopath)/|/lib/python[\d.]+/(?!site-packages)|^<"
)


def sentence_of(error: BaseException) -> str | None:
    """What happened and what to do, if the cause is outside of this package; otherwise None.

    What another process raised, of a data loader or of the training, is read from the traceback
    that it left.
    """
    if isinstance(error, ProcessExitedException):
        return (
            f"a process of the training was ended from outside ({in_one_line(str(error))}): if "
            "memory ran out, lower SOLVER.IMS_PER_BATCH or DATALOADER.NUM_WORKERS"
        )
    message = _own_words(error)
    if isinstance(error, UserError) or "UserError: " in message:
        return message.rpartition("UserError: ")[2]
    reason = message if isinstance(error, ProcessRaisedException) else _named(error, message)
    if isinstance(error, (ConnectionError, EOFError)) and _is_between_processes(error):
        return WORKER.format(reason=reason)
    for kind in KINDS:
        if isinstance(error, kind.types) and re.search(kind.pattern, message):
            return kind.sentence.format(reason=reason, file=_file(error), outside=OUTSIDE)
    place = _place(files_of(error))
    for places, sentence in PLACES.items():
        if re.search(places, place):
            return sentence.format(reason=reason)
    # A library's; one that a user's own part raises without a number is for its author.
    if isinstance(error, OSError) and not _is_own(files_of(error)[-1]):
        return FILE.format(reason=reason, file=_file(error), outside=OUTSIDE)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the computer."""
    return _is(MEMORY, error)


def is_lost_process(error: BaseException) -> bool:
    """Whether a process of the training does not reach the others, one of which may have failed."""
    return _is(PROCESSES, error)


def _is(sentence: str, error: BaseException) -> bool:
    return any(
        isinstance(error, kind.types) and re.search(kind.pattern, str(error))
        for kind in KINDS
        if kind.sentence is sentence
    )


def files_of(error: BaseException) -> list[str]:
    """The files in which ``error`` was on its way, the last one raised it.

    Of an exception of another process, those of its own traceback.
    """
    told = re.findall(r'^ *File "([^"]+)", line', str(error), re.MULTILINE)
    return told or [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


def whose_fault(error: BaseException) -> str:
    """The file that a user wrote and that raised ``error``, or "" if this package is to blame."""
    for file in reversed(files_of(error)):
        if PACKAGE in Path(file).parents:
            return ""
        if _is_own(file):
            return file
    return ""


def is_own_exit(error: BaseException) -> bool:
    """Whether a part that a user wrote wants to end the process."""
    return isinstance(error, SystemExit) and is_of_a_user(files_of(error))


def is_of_a_user(files: list[str]) -> bool:
    """Whether, of the files on the way to a library's function, one that a user wrote calls it."""
    return _is_own(_place(files))


def _place(files: list[str]) -> str:
    """The last of ``files`` that is none of a library for all programs."""
    return next((file for file in reversed(files) if not _LIBRARIES.search(file)), "")


def _is_own(file: str) -> bool:
    """Whether a user wrote it."""
    return bool(file) and not (
        {PACKAGE, _DETECTRON2} & {*Path(file).parents}
        or _LIBRARIES.search(file)
        or "site-packages" in file
        or file.endswith("train_net.py")
    )


def _is_between_processes(error: BaseException) -> bool:
    return any("/multiprocessing/" in file for file in files_of(error))


def _own_words(error: BaseException) -> str:
    """The message in one line; of an exception of another process, that at the traceback's end."""
    message = str(error)
    if "Traceback (most recent call last)" in message:
        lines = message.rstrip().splitlines()
        # The message may have lines of its own: it begins behind the last line of the traceback.
        last = max(i for i, line in enumerate(lines) if line.startswith("  "))
        message = "\n".join(lines[last + 1 :]) or lines[-1]
    return in_one_line(message)


def in_one_line(message: str) -> str:
    return " ".join(message.split())


def _named(error: BaseException, message: str) -> str:
    name = type(error).__name__
    return message if message.startswith(name) else f"{name}: {message}".rstrip(": ")


def _file(error: BaseException) -> str:
    """The file that ``error`` names."""
    quoted = re.search(r"'([^']*[/.][^']*)'|\"([^\"]*[/.][^\"]*)\"", _own_words(error))
    in_message = (quoted.group(1) or quoted.group(2)) if quoted else None
    return getattr(error, "filename", None) or in_message or "a file"
