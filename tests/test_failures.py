"""What comes from outside is one sentence and a remedy; a fault keeps its traceback."""

import json
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import struct
import sys
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data.detection_utils import check_image_size, read_image
from detectron2.engine import SimpleTrainer
from detectron2.evaluation import COCOEvaluator, verify_results
from PIL import Image
from torch._utils import ExceptionWrapper
from torch.multiprocessing import (
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)
from torch.utils.data import DataLoader, Dataset

from retinanet_plugin.engine import one_sentence_errors, stop_signals
from retinanet_plugin.engine.failures import own_losses
from retinanet_plugin.engine.failures.console import in_its_own_words, keep_console_readable
from retinanet_plugin.engine.failures.own_losses import OwnLosses
from retinanet_plugin.engine.failures.sentences import is_out_of_memory, sentence_of
from retinanet_plugin.errors import UserError
from retinanet_plugin.head import split_anchors


def error_of(call):
    """The exception that ``call()`` raises."""
    with pytest.raises(Exception) as raised:  # noqa: PT011
        call()
    return raised.value


def jpeg(folder, keep=1.0):
    path = folder / "image.jpg"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)).save(
        path
    )
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    return str(path)


def full_disk(folder):
    with open("/dev/full", "w") as file:
        file.write("x")
        file.flush()


def file_limit(folder):
    """A limit on the size of files, as a quota would be."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        torch.save(torch.zeros(10_000), folder / "model.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def below_a_file(folder):
    (folder / "file").write_text("")
    (folder / "file/log.txt").write_text("")


def huge_image(folder):
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 100
    try:
        Image.open(jpeg(folder))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def ended_at_the_other_end():
    here, there = multiprocessing.Pipe()
    there.close()
    here.recv()


def damaged_checkpoint(folder):
    torch.save({"model": torch.zeros(1000)}, folder / "model.pth")
    data = (folder / "model.pth").read_bytes()
    (folder / "model.pth").write_bytes(data[: len(data) // 2])
    torch.load(folder / "model.pth", weights_only=True)


def not_a_number(text):
    raise FloatingPointError(text)


def raised(error):
    raise error


OUTSIDE = {
    "missing": (lambda f: (f / "a.txt").read_text(), "a.txt does not exist"),
    "folder": (lambda f: f.read_text(), "is a folder where a file is meant"),
    "below a file": (below_a_file, "needs a folder where there is a file"),
    "no permission": (lambda f: raised(PermissionError(13, "no", "x.json")), "x.json may not be"),
    "read-only disk": (lambda f: raised(OSError(30, "Read-only", "x.pth")), "x.pth is on a disk"),
    "full disk": (full_disk, "no room is left"),
    "quota": (file_limit, "no room is left"),
    "no parent": (lambda f: torch.save({}, f / "b/c.pth"), "correct the path"),
    "memory": (lambda f: np.zeros(2**55, dtype=np.uint8), "memory ran out"),
    "tensor": (lambda f: torch.empty(2**50), "memory ran out"),
    "GPU": (lambda f: raised(torch.cuda.OutOfMemoryError("CUDA out of memory.")), "IMS_PER_BATCH"),
    "open files": (lambda f: raised(OSError(24, "Too many open files")), "ulimit -n"),
    "half a JPEG": (lambda f: read_image(jpeg(f, 0.5), "BGR"), "an image file cannot be read"),
    "no image": (lambda f: read_image(jpeg(f, 0.0), "BGR"), "image.jpg"),
    "huge image": (huge_image, "an image file cannot be read"),
    "another size": (
        lambda f: check_image_size(
            {"file_name": "a.jpg", "width": 9, "height": 9}, np.zeros((5, 5))
        ),
        "a.jpg",
    ),
    "no network": (lambda f: urllib.request.urlopen("http://127.0.0.1:9/"), "the network failed"),
    "reset": (lambda f: raised(ConnectionResetError(104, "reset by peer")), "the network failed"),
    "ended worker": (lambda f: ended_at_the_other_end(), "a process that loads data was ended"),
    "ended reader": (lambda f: raised(BrokenPipeError(32, "pipe")), "the program that reads the"),
    "time out": (lambda f: raised(TimeoutError("timed out")), "the network failed"),
    "half a checkpoint": (damaged_checkpoint, "is damaged"),
    "no pickle": (lambda f: pickle.loads(b"\x80\x99"), "is damaged"),
    "empty pickle": (lambda f: pickle.loads(b""), "is damaged"),
    "no zip": (lambda f: zipfile.ZipFile(str(Path(__file__))), "is damaged"),
    "JSON": (lambda f: json.loads("{"), "a JSON file is not valid"),
    "YAML": (lambda f: yaml.safe_load("a: ["), "a YAML file is not valid"),
    "text": (lambda f: b"\xff".decode(), "not in UTF-8"),
    "package": (lambda f: __import__("no_such_package"), "no_such_package"),
    "loss": (lambda f: not_a_number("Loss became infinite"), "SOLVER.BASE_LR"),
    "batch norm": (
        lambda f: torch.nn.BatchNorm2d(3)(torch.zeros(1, 3, 1, 1)), "SOLVER.IMS_PER_BATCH"
    ),
    "killed worker": (
        lambda f: raised(RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. ")),
        "DATALOADER.NUM_WORKERS",
    ),
    "shared memory": (
        lambda f: raised(RuntimeError("DataLoader worker (pid 3) is killed: Bus error.")),
        "/dev/shm",
    ),
    "port": (
        lambda f: raised(RuntimeError("The server socket has failed: EADDRINUSE")), "--dist-url"
    ),
    "port of a process": (
        lambda f: raised(
            ProcessRaisedException(
                'Traceback (most recent call last):\n  File "c10d.py", line 1, in f\n'
                "DistNetworkError: The server socket has failed, name: EADDRINUSE",
                *(0, 1),
            )
        ),
        "--dist-url",
    ),
    "GPU error": (lambda f: raised(RuntimeError("CUDA error: illegal")), "the GPU reports"),
    "killed process": (
        lambda f: raised(
            ProcessExitedException(
                "process 0 terminated with signal SIGKILL",
                error_index=0, error_pid=1, exit_code=-9, signal_name="SIGKILL",
            )
        ),
        "SIGKILL",
    ),
    "user error": (lambda f: raised(UserError("write it so")), "write it so"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "part"), OUTSIDE.values(), ids=OUTSIDE)
def test_the_outside_world_in_one_sentence(call, part, tmp_path):
    sentence = sentence_of(error_of(lambda: call(tmp_path)))
    assert part in sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence


def test_the_evaluator_and_odd_data(tmp_path):
    def evaluate():
        evaluator = COCOEvaluator.__new__(COCOEvaluator)
        evaluator._metadata = None
        evaluator.process([{}], [{}])

    assert "the evaluation cannot use what it was given (KeyError: 'image_id')" in sentence_of(
        error_of(evaluate)
    )


@pytest.mark.parametrize("error", [IndexError("out of range"), RuntimeError("shapes differ")])
def test_faults_are_in_no_row(error):
    assert sentence_of(error_of(lambda: raised(error))) is None


def test_what_is_out_of_memory():
    assert is_out_of_memory(error_of(lambda: torch.empty(2**50)))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def raised_in_a_worker(error):
    """``error`` as a DataLoader raises it that a worker has sent."""
    try:
        raise error
    except Exception:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    return error_of(wrapped.reraise)


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (FileNotFoundError(2, "No such file or directory", "a/b.jpg"), "a/b.jpg does not exist"),
        (UserError("image 3 of a.json: mend it"), "image 3 of a.json: mend it"),
        (
            OSError("image file is truncated (3 bytes not processed)"),
            "an image file cannot be read",
        ),
        (struct.error("unpack: image file"), "an image file cannot be read"),
        (IndexError("list index out of range"), None),
    ],
)
def test_what_a_worker_raises_is_told_as_if_it_were_raised_here(error, part):
    caught = raised_in_a_worker(error)
    assert str(error) in str(caught)
    sentence = sentence_of(caught)
    assert (part is None) == (sentence is None)
    if part:
        assert part in sentence
        assert "\n" not in sentence
        assert "Caught" not in sentence


class Dying(Dataset):
    """Its worker is killed, as the system does when memory runs out."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed():
    sentence = sentence_of(error_of(lambda: next(iter(DataLoader(Dying(), num_workers=1)))))
    assert "a process that loads data was ended from outside" in sentence
    assert "Killed" in sentence or "exited unexpectedly" in sentence


@pytest.fixture
def log(tmp_path):
    """The log of a training, ``log.txt``."""
    path = tmp_path / "output/log.txt"
    path.parent.mkdir()
    handler = logging.StreamHandler(path.open("a"))
    logging.getLogger("detectron2").addHandler(handler)
    yield path
    logging.getLogger("detectron2").removeHandler(handler)
    handler.stream.close()


def ending(call, capsys):
    """With what status and text a command ends that does ``call``."""
    with pytest.raises(SystemExit) as stop, one_sentence_errors():
        call()
    return stop.value.code, capsys.readouterr()


def test_the_traceback_is_in_the_log_alone(log, tmp_path, capsys):
    told, console = ending((tmp_path / "none.json").read_text, capsys)
    assert told.startswith("error: ")
    assert told.endswith(f"(details: {log})")
    assert not console.out + console.err
    assert "Traceback (most recent call last)" in log.read_text()
    assert "FileNotFoundError" in log.read_text()


def test_a_fault_keeps_its_traceback(log, capsys):
    told, console = ending(lambda: split_anchors(None, 4), capsys)
    assert "Traceback (most recent call last)" in console.err
    assert "a fault of retinanet_plugin and not of your data or config" in told
    assert str(log) in told
    assert "Traceback" in log.read_text()


def test_a_fault_of_a_part_that_a_user_wrote(capsys):
    told, console = ending(lambda: [][1], capsys)
    assert "Traceback (most recent call last)" in console.err
    assert told.startswith(f"error: IndexError in {__file__}, which is not of this package")


def test_interrupted_outside_of_a_training(capsys):
    status, console = ending(lambda: raised(KeyboardInterrupt()), capsys)
    assert status == 130
    assert console.err == "interrupted\n"


def raise_stopped():
    with stop_signals():
        signal.raise_signal(signal.SIGTERM)


def test_only_this_package_ends_the_process(capsys):
    told, console = ending(lambda: sys.exit(0), capsys)
    assert told.startswith(f"error: SystemExit in {__file__}, which is not of this package")
    assert "Traceback (most recent call last)" in console.err
    cfg = CfgNode({"TEST": {"EXPECTED_RESULTS": [["bbox", "AP", 50.0, 1.0]]}})
    assert ending(lambda: verify_results(cfg, {"bbox": {"AP": 1.0}}), capsys)[0] == 1
    assert ending(raise_stopped, capsys)[0] == 143


@pytest.mark.parametrize(("error", "is_own"), [(OSError("mine"), True), (OSError(5, "I/O"), False)])
def test_an_error_of_files_that_a_user_raises(error, is_own):
    assert (sentence_of(error_of(lambda: raised(error))) is None) == is_own


def in_a_process(rank, way):
    if way == "lost" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    in_its_own_words(_ends, way)


def _ends(way):
    if way == "file":
        Path("/none/a.json").read_text()
    if way == "lost":  # as Gloo says of the other
        raise RuntimeError(
            "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]"
        )
    if way == "fault":
        [][1]
    if way == "exit":
        raise SystemExit(0)
    raise_stopped()


@pytest.mark.parametrize("way", ["file", "fault", "exit", "signal", "lost"])
def test_processes_that_a_training_starts(way, capfd):
    status, console = ending(
        lambda: start_processes(in_a_process, args=(way,), nprocs=2, start_method="fork"), capfd
    )
    if way == "signal":
        assert status == 143
    elif way == "exit":
        assert status == 1
        assert f"error: SystemExit in {__file__}, which is not of this package" in console.err
    elif way == "file":
        assert status.startswith("error: /none/a.json does not exist")
        assert "\n" not in status
        assert "Traceback" not in console.err
    elif way == "lost":  # the one that failed first is told of
        assert status.startswith("error: a process of the training was ended from outside")
    else:
        assert f"in {__file__}, which is not of this package" in status
        assert "Traceback" in console.err


@pytest.fixture
def quiet(monkeypatch):
    """As in a process of a command."""
    monkeypatch.setattr("threading.excepthook", None)
    monkeypatch.setattr("sys.unraisablehook", None)
    monkeypatch.setattr(logging.Handler, "handleError", None)
    loggers = [logging.getLogger(f"detectron2.engine.{name}") for name in ("train_loop", "launch")]
    for logger in loggers:
        monkeypatch.setattr(logger, "filters", [])
    keep_console_readable.cache_clear()
    keep_console_readable()


@pytest.fixture
def always_warn():
    """Also of what PyTorch warns of once in a process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.filterwarnings("error")
def test_losses_of_several_processes_are_read_without_a_warning(always_warn, monkeypatch):
    written = []
    monkeypatch.setattr(own_losses.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        SimpleTrainer, "_write_metrics", lambda trainer, losses: written.append(losses)
    )
    losses = {"loss_cls": torch.tensor(1.0, requires_grad=True)}
    OwnLosses._write_metrics(OwnLosses.__new__(OwnLosses), losses)
    assert written == [losses]


@pytest.mark.usefixtures("quiet")
def test_a_log_that_cannot_be_written_is_left_out(capsys):
    handler = logging.FileHandler("/dev/full")
    logger = logging.Logger("a training")
    logger.addHandler(handler)
    logger.warning("first")
    logger.warning("second")
    console = capsys.readouterr().err
    assert "Traceback" not in console
    assert console.count("No space left on device") == 1
    with pytest.raises(OSError, match="No space left"):
        handler.stream.close()
