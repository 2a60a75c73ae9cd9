"""Exceptions of the outside world by their types and messages: files, memory, network, processes.

What is in no row of these tables is a fault: of this package, or of a part that a user wrote.
"""

import http.client
import json
import pickle
import struct
import urllib.error
import xml.etree.ElementTree
import zipfile
import zlib
from dataclasses import dataclass

import PIL
import torch
import yaml
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image
from torch.multiprocessing import ProcessRaisedException


@dataclass(frozen=True)
class Kind:
    """Exceptions of one cause."""

    types: tuple[type[BaseException], ...]
    pattern: str  # regular expression, found in the message; "" for any
    sentence: str  # {reason} is the exception in its own words, {file} the file that it names


MEMORY_REMEDY = (
    "lower SOLVER.IMS_PER_BATCH, or keep it and raise SOLVER.ACCUMULATE_STEPS, or lower "
    "INPUT.MIN_SIZE_TRAIN and INPUT.MAX_SIZE_TRAIN (in evaluation, INPUT.MIN_SIZE_TEST and "
    "INPUT.MAX_SIZE_TEST), or, if it is the computer's and not the GPU's, DATALOADER.NUM_WORKERS"
)
MEMORY = f"memory ran out ({{reason}}): {MEMORY_REMEDY}"
_SHARED_MEMORY = (
    "the processes that load data ran out of shared memory, /dev/shm ({reason}): enlarge it "
    "(docker run --shm-size 8g), or lower DATALOADER.NUM_WORKERS"
)
WORKER = (
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
FILE = "{file} cannot be read or written ({reason}): {outside}"
PROCESSES = (
    "the processes of the training cannot reach each other ({reason}): look what was said of the "
    "others, and whether an old training still runs; where torchrun does not start them, give a "
    "free port with --dist-url tcp://127.0.0.1:PORT"
)

# The first row that fits is taken. Numbers of errors stand in messages, which is all that is left
# of what another process raised.
KINDS = (
    Kind((MemoryError, torch.cuda.OutOfMemoryError), "", MEMORY),
    Kind(
        (RuntimeError,),
        "can't allocate memory|out of memory|not enough memory|_ALLOC_FAILED",
        MEMORY,
    ),
    Kind((RuntimeError, OSError), "Bus error|insufficient shared memory|/dev/shm", _SHARED_MEMORY),
    Kind(
        (RuntimeError,),
        "unable to (mmap|open shared memory|write to file|resize file) |torch_shm_manager",
        _SHARED_MEMORY,
    ),
    Kind((RuntimeError,), r"DataLoader worker .*(exited unexpectedly|killed by signal)", WORKER),
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
    Kind(  # what another process raised before it runs anything of this package
        (RuntimeError, ProcessRaisedException),
        "NCCL|EADDRINUSE|Address already in use|[Gg]loo|c10d|TCPStore|socket"
        "|Connection (was likely |)closed",
        PROCESSES,
    ),
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
    Kind((OSError,), r"\[Errno ", FILE),
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
OUTSIDE = "correct the path or its permissions, or set OUTPUT_DIR to a folder that can be written"

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
