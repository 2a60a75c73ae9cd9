"""Right in whatever environment Python is started: what a machine, a shell or a caller has set."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from retinanet_plugin import UserError
from retinanet_plugin.__main__ import main
from retinanet_plugin.data.digits import write_digits
from retinanet_plugin.engine.checks.output_dir import check_output_dir
from retinanet_plugin.new_folders import new_files, whole_folder

BUILD = """
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from retinanet_plugin import add_retinanet_config

cfg = get_cfg()
add_retinanet_config(cfg)
cfg.merge_from_file("configs/digits/retinanet_narrow_R_50_FPN.yaml")
model = build_model(cfg)
truth = Instances((64, 64))
truth.gt_boxes, truth.gt_classes = Boxes([[8.0, 8.0, 40.0, 60.0]]), torch.tensor([3])
image = torch.zeros(3, 64, 64, dtype=torch.uint8)
"""
TRAIN = 'print(*model.train()([{"image": image, "instances": truth}]))'


def test_without_assertions_a_model_trains_in_a_loop_of_its_own(clean_env):
    """Detectron2 says by an assertion that no trainer is listening."""
    command = [sys.executable, "-O", "-c", BUILD + TRAIN]
    ran = subprocess.run(command, cwd=ROOT, env=clean_env, capture_output=True, text=True)
    assert ran.stdout.split() == ["loss_cls", "loss_box_reg"], ran.stderr


def test_closed_streams_are_replaced(clean_env):
    """As a daemon has them; the first file that is opened then would be number 1 or 2."""
    code = """
import os, sys
from retinanet_plugin.engine import keep_console_readable
keep_console_readable()
print("said", sys.stderr.isatty(), file=sys.stderr)
free = os.open(os.devnull, os.O_RDONLY)
os._exit(7 if free > 2 and not sys.stdout.isatty() else 1)
"""
    close = 'exec "$@" 1>&- 2>&-'
    command = ["sh", "-c", close, "sh", sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, env=clean_env).returncode == 7


def test_a_console_shows_names_that_its_encoding_lacks(clean_env):
    code = """
from retinanet_plugin.engine import keep_console_readable
keep_console_readable()
print("K\\xe4fer, and bytes of no text: \\udce4")
"""
    env = {**clean_env, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert ran.stdout == rb"K\xe4fer, and bytes of no text: \udce4" + b"\n", ran.stderr


def test_names_of_bytes_that_libraries_cannot_take_are_refused_before_the_work():
    name = os.fsdecode(b"Z\xe4hne")
    with pytest.raises(UserError, match=r"OUTPUT_DIR 'Z\\udce4hne' has a name that is not UTF-8"):
        check_output_dir(name)
    with pytest.raises(
        SystemExit, match=r"the file 'Z\\udce4hne\.onnx' has a name that is not UTF-8"
    ):
        main(["export", "onnx", "model.pth", f"{name}.onnx"])


# ------------------------------------------------------------------ folders


@pytest.fixture
def coco_file(digits):
    return digits / "annotations/val.json"


@pytest.mark.parametrize("file_format", ["yolo", "voc", "labelme"])
def test_a_link_to_an_empty_folder_is_written_into(file_format, coco_file, digits, tmp_path):
    """As is a disk of its own, such as a volume in Docker: neither can be replaced by a rename."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    main(["convert", str(coco_file), str(tmp_path / "link"), "--format", file_format,
          "--images", str(digits / "val")])  # fmt: skip
    assert (tmp_path / "link").is_symlink()
    images = len(json.loads(coco_file.read_text())["images"])
    again = tmp_path / "again.json"
    images_of = ["--images", str(digits / "val")] if file_format == "labelme" else []
    main(["convert", str(tmp_path / "link"), str(again), *images_of])
    assert len(json.loads(again.read_text())["images"]) == images


def test_the_current_folder_is_written_into(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_digits(".", num_images={"train": 2, "val": 1})
    assert sorted(os.listdir()) == ["annotations", "train", "val"]


def test_a_folder_has_all_or_nothing(tmp_path):
    def write(*names):
        with whole_folder(str(tmp_path / "new/folder")) as folder:
            for name in names:
                with open(os.path.join(folder, name), "w"):
                    assert not (tmp_path / "new/folder" / name).exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write("a", "b")
    assert list(tmp_path.iterdir()) == []
    # What a process leaves that is killed is in nobody's way.
    left = tmp_path / "killed"
    (left / ".retinanet-partial").mkdir(parents=True)
    (left / ".retinanet-partial/half").write_text("half")
    (left / ".retinanet-unfinished").write_text("process 1 on here")
    with whole_folder(str(left)) as folder, open(os.path.join(folder, "whole"), "w"):
        pass
    assert os.listdir(left) == ["whole"]


def test_full_disks_are_told(tmp_path, monkeypatch):
    """OpenCV writes half an image, and says nothing."""
    real = open

    def full(path, mode="r", *args, **kwargs):
        if str(path).endswith("00002.jpg") and "w" in mode:
            raise OSError(28, "No space left on device")
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match="No space left"):
        write_digits(str(tmp_path / "digits"), num_images={"train": 3, "val": 1})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ two at a time

HOLD = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(file, fcntl.LOCK_EX)
os.write(file, b"process 7 on here")
print("ready", flush=True)
sys.stdin.read()
"""


def held_elsewhere(lock):
    """Another process, which writes what the lock is of."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_one_export_at_a_time_to_a_file(tmp_path):
    """The second one would have written over the first one's file, and both said that it is theirs;
    an error of one removed the other's."""
    path = tmp_path / "model.onnx"
    with held_elsewhere(tmp_path / ".model.onnx.retinanet-unfinished") as other:
        with pytest.raises(
            SystemExit, match=f"another process writes into {tmp_path} .process 7 on here"
        ):
            main(["export", "onnx", "model.pth", str(path)])
        path.write_text("half")
        other.kill()
    with new_files(str(path)):  # it was killed before its export was compared
        assert not path.exists()
        path.write_text("whole")
    assert os.listdir(tmp_path) == ["model.onnx"]
    with pytest.raises(UserError, match=r"model\.onnx exists already"), new_files(str(path)):
        pass
    assert path.read_text() == "whole"


def test_one_report_at_a_time_in_a_folder(digits, tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    given = ["--truth", str(digits / "annotations/val.json"), "--images", str(digits / "val")]
    told = f"another process writes into {folder} .process 7 on here"
    with (
        held_elsewhere(folder / ".retinanet-unfinished"),
        pytest.raises(SystemExit, match=told),
    ):
        main(["report", *given, "--weights", "model.pth", "--output", str(folder)])
