"""Checkpoints: whole at any moment, of plain values, found again, and enough to predict with."""

import logging
import math
import os
import resource
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_equal_detections, detect, make_batch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from retinanet_plugin.config import load_config
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.engine import Checkpointer, Trainer
from retinanet_plugin.engine.checkpoints.earlier_checkpoints import (
    find_checkpoint,
    prepare_output_dir,
)
from retinanet_plugin.errors import UserError
from retinanet_plugin.weights.checkpoint_contents import described_training
from retinanet_plugin.weights.torch_files import read_checkpoint
from retinanet_plugin.whole_files import write_whole_file

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")
CLASSES = ["0", "1", "2"]


class Numbers:
    """Something else that a checkpoint keeps."""

    def __init__(self, **numbers):
        self.numbers = numbers

    def state_dict(self):
        return self.numbers

    def load_state_dict(self, state):
        self.numbers = state


@pytest.fixture
def output(tmp_path):
    return tmp_path / "output"


@pytest.fixture
def cfg(output, request):
    name = request.node.name
    MetadataCatalog.get(name).thing_classes = CLASSES
    cfg = load_config(INSTANT, ["MODEL.RETINANET.NUM_CLASSES", "3", "OUTPUT_DIR", str(output)])
    cfg.DATASETS.TRAIN = (name,)
    yield cfg
    MetadataCatalog.remove(name)


@pytest.fixture
def checkpointer(cfg, output):
    """Of a small model, beside one more object."""
    output.mkdir()
    return Checkpointer(nn.Linear(300, 100), str(output), cfg=cfg, more=Numbers(seen=3))


def read(path):
    return torch.load(path, weights_only=True)


def found(folder):
    """The path of what ``--resume`` goes on from."""
    checkpoint = find_checkpoint(str(folder))
    return checkpoint and checkpoint.path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------ what they hold


def test_a_checkpoint_alone_is_enough_to_predict(cfg, output):
    model = build_model(cfg)
    nn.init.normal_(model.head.cls_score.weight, std=0.05)
    nn.init.constant_(model.head.cls_score.bias, -4.0)
    output.mkdir()
    Checkpointer(model, str(output), cfg=cfg).save("model_final", iteration=1)

    path = str(output / "model_final.pth")
    rebuilt_cfg, class_names = described_training(path)
    assert class_names == CLASSES
    rebuilt = build_model(rebuilt_cfg)
    Checkpointer(rebuilt).load(rebuilt_cfg.MODEL.WEIGHTS)
    batch = make_batch(3)
    assert_equal_detections(detect(rebuilt, batch), detect(model, batch))


def test_what_is_beside_the_weights(checkpointer, cfg, output):
    checkpointer.save("model_0000001", iteration=1, seen=np.int64(4), loss=np.float32(0.5))
    content = read(output / "model_0000001.pth")
    assert content["class_names"] == CLASSES
    assert content["preprocessing"] == {
        "format": "BGR",
        "pixel_mean": [103.53, 116.28, 123.675],
        "pixel_std": [1.0, 1.0, 1.0],
        "min_size_test": 160,
        "max_size_test": 1333,
    }
    assert content["more"] == {"seen": 3}
    assert content["versions"]["torch"] == torch.__version__.partition("+")[0]
    # Numbers of numpy would need more than weights_only=True.
    assert (type(content["seen"]), type(content["loss"])) == (int, float)


def test_stock_loads_our_checkpoints(checkpointer, output):
    checkpointer.save("model_final", iteration=7)
    stock = DetectionCheckpointer(nn.Linear(300, 100), str(output), more=Numbers())
    assert stock.resume_or_load("", resume=True)["iteration"] == 7
    assert torch.equal(stock.model.weight, checkpointer.model.weight)
    assert stock.checkpointables["more"].numbers == {"seen": 3}


def test_a_state_of_objects_is_refused_by_name(checkpointer, output):
    checkpointer.checkpointables["more"] = Numbers(scheduler={"function": [print, len]})
    with pytest.raises(UserError, match=r"checkpoint\.more\.scheduler\.function is a builtins"):
        checkpointer.save("model_final")
    assert names_in(output) == []


def test_a_file_without_a_config(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(UserError, match=r"bare\.pth does not say how its model is built"):
        described_training(str(tmp_path / "bare.pth"))


def test_a_config_that_carries_code_does_not_run_it(tmp_path):
    marker = tmp_path / "ran"
    config = f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {marker}']"
    torch.save({"model": nn.Linear(2, 2).state_dict(), "config": config}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"the config in the checkpoint .*a\.pth cannot be used"):
        described_training(str(tmp_path / "a.pth"))
    assert not marker.exists()


# ------------------------------------------------------------------ whole at any moment


@pytest.fixture
def no_room():
    """No file may grow beyond 60 kB, half of a checkpoint here."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["model_0000003", "model_final"])
def test_no_room(checkpointer, output, name, request):
    checkpointer.save("model_final", iteration=1)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    room_again = request.getfixturevalue("no_room")
    with pytest.raises(
        UserError, match=rf"{name}\.pth could not be written \(File too large\).*room"
    ):
        checkpointer.save(name, iteration=3)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    room_again()
    checkpointer.save(name, iteration=3)
    assert read(found(output))["iteration"] == 3


def test_a_folder_that_cannot_be_written_to(checkpointer, output):
    output.rmdir()
    output.write_text("")
    with pytest.raises(UserError, match=r"model_final\.pth could not be written \(File exists"):
        checkpointer.save("model_final")


def test_interrupted_while_writing(output):
    output.mkdir()
    path = output / "last_checkpoint"
    path.write_text("whole")

    def write(file):
        file.write(b"ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole_file(str(path), write)
    assert path.read_text() == "whole"
    assert names_in(output) == ["last_checkpoint"]


def test_what_killed_runs_left_is_removed_when_training_starts(checkpointer, output):
    checkpointer.save("model_0000001", iteration=1)
    (output / "model_0000003.pth.4711.tmp").write_bytes(b"half of it")
    prepare_output_dir(str(output), start_iter=1)
    assert names_in(output) == ["last_checkpoint", "model_0000001.pth"]


# ------------------------------------------------------------------ which is taken


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut off": cut_off,
    "empty": lambda path: path.write_bytes(b""),
    "another byte": change_a_byte,
    "deleted": lambda path: path.unlink(),
    "no checkpoint": lambda path: path.write_text("<html>"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture
def two_checkpoints(checkpointer, output):
    """Paths of two checkpoints, the older first."""
    checkpointer.save("model_0000001", iteration=1)
    checkpointer.save("model_0000003", iteration=3)
    checkpointer.save_best(0.5)
    return output / "model_0000001.pth", output / "model_0000003.pth"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_last_checkpoint(two_checkpoints, output, damage, caplog):
    older, newer = two_checkpoints
    damage(newer)
    fresh = Checkpointer(nn.Linear(300, 100), str(output), more=Numbers())
    assert fresh.resume_or_load("", resume=True)["iteration"] == 1
    assert fresh.has_checkpoint()
    (warning,) = [x.getMessage() for x in caplog.records if x.levelno == logging.WARNING]
    assert warning.startswith(str(newer))
    assert f"--resume goes on from {older}, of iteration 1" in warning


@pytest.mark.parametrize(
    "content", [None, "", "model_0000009.pth", "a\nb", "\0", b"\xff\xfe", "x" * 5000]
)
def test_a_damaged_name_of_the_last_checkpoint(two_checkpoints, output, content, caplog):
    tag = output / "last_checkpoint"
    tag.unlink()
    if content is not None:
        tag.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert found(output) == str(two_checkpoints[1])
    assert len(caplog.records) == 1
    assert len(caplog.text) < 2000


def test_last_checkpoint_names_a_file_elsewhere(two_checkpoints, output, caplog):
    elsewhere = output.parent / "elsewhere.pth"
    shutil.copy(two_checkpoints[0], elsewhere)
    (output / "last_checkpoint").write_text(str(elsewhere))
    assert found(output) == str(elsewhere)
    assert f"names a file outside of OUTPUT_DIR, {elsewhere}" in caplog.text


def test_last_checkpoint_names_the_older_one(two_checkpoints, output, caplog):
    (output / "last_checkpoint").write_text("model_0000001.pth\n")
    assert found(output) == str(two_checkpoints[0])
    assert not caplog.records


def test_none_is_whole(two_checkpoints, output):
    for path in two_checkpoints:
        cut_off(path)
    with pytest.raises(UserError) as error:
        find_checkpoint(str(output))
    assert all(path.name in str(error.value) for path in two_checkpoints)


def test_there_is_none(output):
    assert found(output) is None
    output.mkdir()
    torch.save({"w": torch.zeros(2)}, output / "pretrained.pth")
    assert found(output) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("of", ["weight", "momentum"])
def test_numbers_that_are_not_finite_are_not_written(cfg, output, value, of):
    output.mkdir()
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 1
    model, momentum = nn.Linear(3, 2), torch.zeros(2)
    trainer = Numbers(
        run={"parameters": ["weight"]}, optimizer={"state": {0: {"momentum_buffer": momentum}}}
    )
    checkpointer = Checkpointer(model, str(output), cfg=cfg, trainer=trainer)
    checkpointer.save("model_0000001", iteration=1)
    before = names_in(output)
    with torch.no_grad():
        (model.weight[0] if of == "weight" else momentum)[1] = value
    name = {"weight": "weight has NaN", "momentum": "momentum_buffer of weight has NaN"}[of]
    for save in (checkpointer.save, lambda name: checkpointer.save_best(0.9)):
        if of == "momentum" and save != checkpointer.save:
            continue  # the best one has weights alone
        with pytest.raises(UserError, match=f"^{name} .*lower SOLVER.BASE_LR"):
            save("model_final")
    assert names_in(output) == before


@pytest.mark.parametrize("place", ["model", "more"])
def test_a_checkpoint_that_is_not_finite_is_passed_over(two_checkpoints, output, place, caplog):
    older, newer = two_checkpoints
    checkpoint = read(newer)
    checkpoint[place]["bias"] = torch.tensor([0, math.nan])
    torch.save(checkpoint, newer)
    assert found(output) == str(older)
    assert f"{newer} has NaN or infinite numbers in" in caplog.text


def test_a_resumed_run_reads_its_checkpoint_once(two_checkpoints, output, monkeypatch):
    reads = []

    def counting(path, **kwargs):
        reads.append(path)
        return read_checkpoint(path, **kwargs)

    for module in ("engine.checkpoints.earlier_checkpoints", "weights.weight_files"):
        monkeypatch.setattr(f"retinanet_plugin.{module}.read_checkpoint", counting)
    fresh = Checkpointer(nn.Linear(300, 100), str(output), more=Numbers())
    assert fresh.has_checkpoint()
    assert fresh.resume_or_load("", resume=True)["iteration"] == 3
    assert reads == [str(two_checkpoints[1])]
    fresh.resume_or_load("", resume=True)  # what was read is not kept
    assert reads == 2 * [str(two_checkpoints[1])]


# ------------------------------------------------------------------ which are kept


def test_the_oldest_are_removed_also_those_of_the_run_that_was_resumed(cfg, output):
    output.mkdir()
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 2
    for iterations in ((1, 3, 5), (7, 9)):
        run = Checkpointer(nn.Linear(2, 2), str(output), cfg=cfg)
        for i in iterations:
            run.save(f"model_{i:07d}", iteration=i)
    run.save("model_final", iteration=9)
    run.save_best(0.1)
    kept = ["model_0000007.pth", "model_0000009.pth", "model_best.pth", "model_final.pth"]
    assert names_in(output) == ["last_checkpoint", *kept]


def test_the_best_one(checkpointer, output):
    checkpointer.save("model_0000001", iteration=1)
    assert checkpointer.save_best(0.3)
    assert not checkpointer.save_best(0.2)
    assert not checkpointer.save_best(math.nan)
    assert (output / "last_checkpoint").read_text() == "model_0000001.pth"
    # A resumed run knows how good it was, and does not replace it by a worse one.
    resumed = Checkpointer(nn.Linear(300, 100), str(output), more=Numbers())
    resumed.resume_or_load("", resume=True)
    assert not resumed.save_best(0.25)
    assert torch.equal(read(output / "model_best.pth")["model"]["weight"], resumed.model.weight)
    assert resumed.save_best(0.31)


def test_an_earlier_training_is_set_aside(checkpointer, output, caplog):
    metrics = (output / "metrics.json").open("a")  # as the trainer has it open by then
    for number in (1, 2):
        checkpointer.save("model_0000001", iteration=1)
        torch.save({}, output / "pretrained.pth")
        print(f"training {number}", file=metrics, flush=True)
        (output / f"events.out.tfevents.{number}.host.1.0").touch()
        (output / f"events.out.tfevents.{number}.host.{os.getpid()}.0").touch()  # in use
        prepare_output_dir(str(output), start_iter=0)
        aside = output / f"earlier-{number}"
        curves = f"events.out.tfevents.{number}.host.1.0"
        assert names_in(aside) == [curves, "last_checkpoint", "metrics.json", "model_0000001.pth"]
        assert (aside / "metrics.json").read_text() == f"training {number}\n"
        assert f"its 1 checkpoints and its metrics are now in {aside}" in caplog.text
    metrics.close()
    assert found(output) is None
    curves = [f"events.out.tfevents.{number}.host.{os.getpid()}.0" for number in (1, 2)]
    others = ["earlier-1", "earlier-2", "metrics.json", "pretrained.pth"]
    assert names_in(output) == sorted([*curves, *others])


def test_weights_of_an_earlier_training_in_the_same_folder_are_refused(digits_entries, output):
    register_coco_json(digits_entries)
    cfg = load_config(INSTANT)
    cfg.DATASETS.TRAIN = (digits_entries[0][0],)
    cfg.DATASETS.TEST = ()
    cfg.OUTPUT_DIR = str(output)
    output.mkdir()
    first = Trainer(cfg)
    first.resume_or_load(resume=True)
    first.checkpointer.save("model_final", iteration=1)
    cfg.MODEL.WEIGHTS = str(output / "model_final.pth")
    cfg.SEED = 2
    with pytest.raises(UserError, match=r"is of an earlier training in .* another OUTPUT_DIR"):
        Trainer(cfg).resume_or_load(resume=False)
    cfg.OUTPUT_DIR = str(output / "second")
    os.mkdir(cfg.OUTPUT_DIR)
    second = Trainer(cfg)
    second.resume_or_load(resume=False)
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values())
    assert all(torch.equal(*pair) for pair in pairs)


def test_processes_but_the_first_write_nothing(output):
    output.mkdir()
    other = Checkpointer(nn.Linear(2, 2), str(output), save_to_disk=False)
    other.save("model_final")
    assert not other.save_best(0.5)
    assert names_in(output) == []
