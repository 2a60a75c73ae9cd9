"""Exceptions of the outside world, each as one sentence with the remedy: files, memory, network.

What is in no row of these tables is a fault: of this package, or of a part that a user wrote.
"""

import http.client
import json
import pickle
import re
import struct
import traceback
import urllib.error
import xml.etree.ElementTree
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import detectron2
import PIL
import torch
import yaml
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ...errors import UserError

PACKAGE = Path(__file__).parents[2]
# Also where it is a checkout.
_DETECTRON2 = Path(detectron2.__file__).parent


@dataclass(frozen=True)
class Kind:
    """Exceptions of one cause."""

    types: tuple[type[BaseException], ...]
    pattern: str  # regular expression, found in the message; "" for any
    sentence: str  # {reason} is the exception in its own words, {file} the file that it names


MEMORY_REMEDY = (
    "lower SOLVER.IMS_PER_BATCH, or INPUT.MIN_SIZE_TRAIN and INPUT.MAX_SIZE_TRAIN (in evaluation, "
    "INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST), or, if it is the computer's and not the GPU's, "
    "DATALOADER.NUM_WORKERS"
)
_MEMORY = f"memory ran out ({{reason}}): {MEMORY_REMEDY}"
_SHARED_MEMORY = (
    "the processes that load data ran out of shared memory, /dev/shm ({reason}): enlarge it "
    "(docker run --shm-size 8g), or lower DATALOADER.NUM_WORKERS"
)
_WORKER = (
    "a process that loads data was ended from outside ({reason}): if memory ran out, lower "
    "DATALOADER.NUM_WORKERS, or set it to 0 to see the cause"
)
_IMAGE = (
    "an image file cannot be read ({reason}): python -m retinanet_plugin doctor --images names "
    "all such files"
)
_NETWORK = (
    "the network failed ({reason}): try again, or download the file and set MODEL.WEIGHTS to its "
    "path"
)
_WEIGHTS = (
    "a file of weights is damaged or of another format ({reason}): take an earlier checkpoint, or "
    "download it anew, and set MODEL.WEIGHTS to it"
)
_FILE = "{file} cannot be read or written ({reason}): {outside}"
_PROCESSES = (
    "the processes of the training cannot reach each other ({reason}): give a free port with "
    "--dist-url tcp://127.0.0.1:PORT, and look whether an old training still runs"
)

# The first row that fits is taken. Numbers of errors stand in messages, which is all that is left
# of what another process raised.
KINDS = (
    Kind((MemoryError, torch.cuda.OutOfMemoryError), "", _MEMORY),
    Kind(
        (RuntimeError,),
        "can't allocate memory|out of memory|not enough memory|_ALLOC_FAILED",
        _MEMORY,
    ),
    Kind((RuntimeError, OSError), "Bus error|insufficient shared memory|/dev/shm", _SHARED_MEMORY),
    Kind(
        (RuntimeError,),
        "unable to (mmap|open shared memory|write to file|resize file) |torch_shm_manager",
        _SHARED_MEMORY,
    ),
    Kind((RuntimeError,), r"DataLoader worker .*(exited unexpectedly|killed by signal)", _WORKER),
    Kind(
        (RuntimeError, OSError),
        r"\[Errno 24\]|Too many open files|received \d+ items of ancdata",
        "too many files are open ({reason}): raise the limit (ulimit -n 65536), or lower "
        "DATALOADER.NUM_WORKERS",
    ),
    Kind(
        (ValueError,),
        "Expected more than 1 value per channel",
        "a batch norm has a single value to take statistics of ({reason}): raise "
        "SOLVER.IMS_PER_BATCH or INPUT.MIN_SIZE_TRAIN, or set its NORM to FrozenBN or GN",
    ),
    Kind((RuntimeError,), "NCCL|EADDRINUSE|Address already in use|Gloo|socket", _PROCESSES),
    Kind(
        (BrokenPipeError,),
        "",
        "the program that reads the output has ended ({reason}): let it read to the end, or write "
        "the output into a file",
    ),
    Kind(
        (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ),
        "",
        _NETWORK,
    ),
    Kind((SizeMismatchError,), "", _IMAGE),
    Kind((PIL.UnidentifiedImageError, Image.DecompressionBombError, zlib.error), "", _IMAGE),
    Kind(
        (OSError, SyntaxError, ValueError, struct.error, EOFError),
        "image file|data stream|decoder|[Bb]roken PNG|not a PNG|[Tt]runcated (File|PNG)|TIFF|JPEG",
        _IMAGE,
    ),
    Kind(
        (OSError, RuntimeError),
        r"\[Errno (28|27|122)\]|No space left|[Ff]ile write failed|PytorchStreamWriter failed"
        "|inline_container.cc.* unexpected pos",
        "{file} cannot be written, no room is left ({reason}): free some, or set OUTPUT_DIR to "
        "another disk, and go on with --resume",
    ),
    Kind((OSError,), r"\[Errno 30\]", "{file} is on a disk that can only be read: {outside}"),
    Kind((PermissionError,), "", "{file} may not be read or written ({reason}): {outside}"),
    Kind((FileNotFoundError,), "", "{file} does not exist ({reason}): {outside}"),
    Kind((RuntimeError,), "Parent directory .* does not exist", "{reason} {outside}"),
    Kind((IsADirectoryError,), "", "{file} is a folder where a file is meant: {outside}"),
    Kind(
        (NotADirectoryError, FileExistsError),
        "",
        "{file} needs a folder where there is a file ({reason}): {outside}",
    ),
    Kind((json.JSONDecodeError,), "", "a JSON file is not valid ({reason}): write it anew"),
    Kind((yaml.YAMLError,), "", "a YAML file is not valid ({reason}): correct it"),
    Kind((xml.etree.ElementTree.ParseError,), "", "an XML file is not valid ({reason}): mend it"),
    Kind((UnicodeError,), "", "a text is not in UTF-8 ({reason}): convert the file that has it"),
    Kind((ValueError,), "unsupported pickle protocol", _WEIGHTS),
    Kind((pickle.UnpicklingError, zipfile.BadZipFile, EOFError), "", _WEIGHTS),
    Kind(
        (RuntimeError,), "PytorchStreamReader failed|archive is corrupted|loading state_d", _WEIGHTS
    ),
    Kind(
        (ImportError,),
        "",
        "a package is missing or does not fit ({reason}): install it into this environment",
    ),
    Kind((OSError,), r"\[Errno ", _FILE),
    Kind(
        (FloatingPointError,),
        "",
        "a loss is not finite ({reason}): lower SOLVER.BASE_LR, or set "
        "SOLVER.CLIP_GRADIENTS.ENABLED True",
    ),
    Kind(
        (RuntimeError,),
        "device-side assert|CUDA error|CUDNN_STATUS|CUBLAS_STATUS|NVIDIA",
        "the GPU reports an error ({reason}): start the command with CUDA_LAUNCH_BLOCKING=1 to see "
        "where, or with MODEL.DEVICE cpu",
    ),
)
_OUTSIDE = "correct the path or its permissions, or set OUTPUT_DIR to a folder that can be written"

# Whatever is raised in these files, though each of it may be anything, comes from what they are
# given: the last of the exception's files that is in one of them decides.
PLACES = {
    r"/pycocotools/|/detectron2/evaluation/": (
        "the evaluation cannot use what it was given ({reason}): look at the annotations of "
        "DATASETS.TEST with python -m retinanet_plugin doctor"
    ),
    r"/detectron2/data/|/fvcore/transforms/": (
        "the data cannot be loaded ({reason}): look at it with python -m retinanet_plugin doctor"
    ),
    r"/detectron2/solver/|/detectron2/config/|/yacs/|/fvcore/common/(config|param_scheduler)": (
        "a value of the config does not fit ({reason}): correct it"
    ),
    r"/detectron2/checkpoint/|/fvcore/common/checkpoint": _WEIGHTS,
}
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
        return _WORKER.format(reason=reason)
    for kind in KINDS:
        if isinstance(error, kind.types) and re.search(kind.pattern, message):
            return kind.sentence.format(reason=reason, file=_file(error), outside=_OUTSIDE)
    place = _place(files_of(error))
    for places, sentence in PLACES.items():
        if re.search(places, place):
            return sentence.format(reason=reason)
    # A library's; one that a user's own part raises without a number is for its author.
    if isinstance(error, OSError) and not _is_own(files_of(error)[-1]):
        return _FILE.format(reason=reason, file=_file(error), outside=_OUTSIDE)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the computer."""
    return any(
        isinstance(error, kind.types) and re.search(kind.pattern, str(error))
        for kind in KINDS
        if kind.sentence is _MEMORY
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
