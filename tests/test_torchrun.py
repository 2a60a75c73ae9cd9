"""Trainings under torchrun, on the CPU: they are those of one process, and survive a kill.

torchrun's agent runs here in the test, and its processes are forked from a server that has imported
everything, which takes seconds less than starting Python for each.
"""

import json
import multiprocessing
import os
import shutil
import signal

import pytest
import torch
from conftest import ROOT
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import train_net
from retinanet_plugin import __main__ as command_line
from retinanet_plugin.engine import Trainer

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")
multiprocessing.set_forkserver_preload(
    ["retinanet_plugin.engine", "retinanet_plugin.data.digits", "pytest", "train_net"]
)


@pytest.fixture
def options(digits_entries, tmp_path):
    """Of a training in four iterations of four images, with an evaluation at its end."""
    (train, *_), (val, *_) = digits_entries
    values = {
        "DATASETS.COCO_JSON": [list(entry) for entry in digits_entries],
        "DATASETS.TRAIN": (train,),
        "DATASETS.TEST": (val,),
        "INPUT.MIN_SIZE_TRAIN": (64, 80),
        "INPUT.MIN_SIZE_TEST": 64,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_ITER": 4,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "SEED": 3,
    }

    def with_values(output, **others):
        values["OUTPUT_DIR"] = str(tmp_path / output)
        for key, value in others.items():
            values[key.replace("__", ".")] = value
        return ["--opts", *(str(x) for pair in values.items() for x in pair)]

    return with_values


def torchrun(num, function, *args, restarts=0, **config):
    """Run ``function`` in ``num`` processes of one agent; the agent's failure, if it has one."""
    config = {
        "min_nodes": 1, "max_nodes": 1, "nproc_per_node": num, "max_restarts": restarts,
        "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test",
        "start_method": "forkserver", **config,
    }  # fmt: skip
    try:
        elastic_launch(LaunchConfig(**config), function)(*args)
    except ChildFailedError as failed:
        return failed
    return None


def train(argv, change=None):
    """``train_net.py`` in a process of torchrun; ``change`` is called first."""
    torch.set_num_threads(1)
    if change is not None:
        change()
    train_net.run(["--config-file", INSTANT, *argv])


def final_weights(tmp_path, output):
    return torch.load(tmp_path / output / "model_final.pth", weights_only=True)["model"]


def results(tmp_path, output):
    (found,) = (tmp_path / output / "inference").glob("*/coco_instances_results.json")
    return json.loads(found.read_text())


def kill_second_process():
    """In its third step, unless torchrun has started it anew."""
    run_step = Trainer.run_step

    def killed(trainer):
        if trainer.iter == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        run_step(trainer)

    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        Trainer.run_step = killed


def test_a_training_survives_a_kill_and_ends_as_without(options, tmp_path, capfd):
    assert torchrun(2, train, options("whole")) is None
    assert torchrun(2, train, options("killed"), kill_second_process, restarts=1) is None
    said = capfd.readouterr().out
    assert said.count("torchrun has started the processes anew: the training goes on from") == 1
    whole, killed = (final_weights(tmp_path, output) for output in ("whole", "killed"))
    for name, value in whole.items():
        assert torch.equal(value, killed[name]), name
    lines = (tmp_path / "killed/metrics.json").read_text().splitlines()
    iterations = [json.loads(line)["iteration"] for line in lines]
    assert iterations == sorted(set(iterations))
    assert results(tmp_path, "killed") == results(tmp_path, "whole")


def test_more_or_fewer_processes_go_on_with_the_same_batches(options, tmp_path, monkeypatch):
    """Two processes begin, one goes on, as four do: up to the order of sums, they end alike."""
    short = {"SOLVER__MAX_ITER": 2, "DATASETS__TEST": ()}
    assert torchrun(2, train, options("whole", DATASETS__TEST=())) is None
    whole = final_weights(tmp_path, "whole")
    assert torchrun(2, train, options("begun", **short)) is None
    for num in (1, 4):
        output = f"by {num}"
        shutil.copytree(tmp_path / "begun", tmp_path / output)
        goes_on = ["--resume", *options(output, SOLVER__MAX_ITER=4)]
        assert torchrun(num, train, goes_on) is None
        assert "began with 2 processes and goes on with" in (tmp_path / output / "log.txt").read_text()
        assert_alike(final_weights(tmp_path, output), whole)


def assert_alike(weights, expected):
    for name, value in expected.items():
        difference = (weights[name].double() - value.double()).norm()
        assert difference <= 1e-5 * value.double().norm() + 1e-9, name


def run_command(argv):
    torch.set_num_threads(1)
    command_line.main(argv)


def test_detections_are_those_of_one_process(detector, tmp_path):
    """One image cannot be read, and there are fewer images than processes could take."""
    (tmp_path / "images").mkdir()
    for file in detector.files:
        shutil.copy(file, tmp_path / "images")
    (tmp_path / "images/1.5.jpg").write_text("no image")
    command = ["predict", str(detector.weights), str(tmp_path / "images"), "--output"]
    failed = [torchrun(num, run_command, [*command, str(tmp_path / f"{num}")]) for num in (1, 3)]
    assert all(failed)  # exit status 1, for the image
    for name in ("detections.jsonl", "predictions.json", "annotations.json"):
        assert (tmp_path / "3" / name).read_text() == (tmp_path / "1" / name).read_text(), name
    assert not list((tmp_path / "3").glob("detections-*"))
