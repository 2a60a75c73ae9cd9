"""Trainings under torchrun, on the CPU: they are those of one process, and survive a kill.

torchrun's agent runs here in the test, and its processes are forked from a server that has imported
everything, which takes seconds less than starting Python for each.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys

import pytest
import torch
from conftest import ROOT
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import train_net
from retinanet_plugin import __main__ as command_line
from retinanet_plugin.engine import Trainer
from retinanet_plugin.errors import UserError

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")
multiprocessing.set_forkserver_preload(
    ["retinanet_plugin.engine", "retinanet_plugin.data.digits", "pytest", "train_net"]
)


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory):
    """``torchrun(num, function, *args)``: runs a function in processes of an agent.

    It returns the exit status of the first that failed, or 0, and what each has printed.
    """

    def run(num, function, *args, restarts=0):
        logs = tmp_path_factory.mktemp("logs")
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=num, max_restarts=restarts, run_id="test",
            rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="forkserver",
            logs_specs=DefaultLogsSpecs(str(logs), redirects=Std.ALL),
        )  # fmt: skip
        status = 0
        try:
            elastic_launch(config, function)(*args)
        except ChildFailedError as failed:
            status = failed.get_first_failure()[1].exitcode
        printed = [
            "".join(path.read_text() for path in sorted(logs.glob(f"*/attempt_*/{rank}/std*.log")))
            for rank in range(num)
        ]
        return status, printed

    return run


def train(argv, change=None):
    """``train_net.py`` in a process of torchrun; ``change`` is called first."""
    if change is not None:
        change()
    run_program(train_net.run, ["--config-file", INSTANT, *argv])


def run_program(main, argv):
    """``main(argv)``; as Python does at the end of a program, print what ``sys.exit`` was given."""
    torch.set_num_threads(1)
    try:
        main(argv)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr, flush=True)
            sys.exit(1)
        raise


@pytest.fixture(scope="module")
def options(digits):
    """``options(output, KEY=value)``: of a training in four iterations of four images."""
    values = {
        "DATASETS.COCO_JSON": [
            [f"torchrun_{x}", str(digits / f"annotations/{x}.json"), str(digits / x)]
            for x in ("train", "val")
        ],
        "DATASETS.TRAIN": ("torchrun_train",),
        "DATASETS.TEST": ("torchrun_val",),
        "TEST.NUM_PICTURES": 0,
        "INPUT.MIN_SIZE_TRAIN": (64,),  # images of one size are padded alike, however shared out
        "INPUT.MIN_SIZE_TEST": 64,
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.001,  # so that there is something to evaluate
        "MODEL.RESNETS.NORM": "",
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_ITER": 4,
        "SOLVER.CHECKPOINT_PERIOD": 2,
    }

    def with_values(output, **others):
        changed = {key.replace("__", "."): value for key, value in others.items()}
        given = {**values, "OUTPUT_DIR": output, **changed}
        return ["--opts", *(str(x) for pair in given.items() for x in pair)]

    return with_values


@pytest.fixture(scope="module")
def whole(options, torchrun, tmp_path_factory):
    """The folder of a training of two processes that nothing has disturbed."""
    output = tmp_path_factory.mktemp("torchrun") / "whole"
    status, printed = torchrun(2, train, options(output, SEED=3))
    assert status == 0, printed
    assert "done: " in printed[0]
    assert printed[1] == ""  # the first process speaks for all
    return output


def final_weights(output):
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def detections(output):
    path = output / "inference/torchrun_val/coco_instances_results.json"
    return json.loads(path.read_text())


# ------------------------------------------------------------------ starting anew


def kill_second_process():
    """In its third step, unless torchrun has started it anew."""
    run_step = Trainer.run_step

    def killed(trainer):
        if trainer.iter == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        run_step(trainer)

    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        Trainer.run_step = killed


def test_a_training_survives_a_kill_and_ends_as_without(options, torchrun, whole, tmp_path):
    """What an earlier training left there is not gone on from."""
    shutil.copy(whole / "model_final.pth", tmp_path)
    argv = options(tmp_path, SEED=3)
    status, (printed, other) = torchrun(2, train, argv, kill_second_process, restarts=1)
    assert status == 0, printed
    assert printed.count(f"anew: the training goes on from {tmp_path}/model_0000001.pth") == 1
    assert "error: " not in printed  # torchrun says which process was killed
    assert other == ""
    weights = final_weights(whole)
    assert all(torch.equal(x, weights[name]) for name, x in final_weights(tmp_path).items())
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    iterations = [json.loads(line)["iteration"] for line in lines]
    assert iterations == sorted(set(iterations))  # none twice
    assert detections(tmp_path) == detections(whole) != []


@pytest.mark.parametrize("num", [1, 4])
def test_other_numbers_of_processes_go_on_with_the_same_batches(
    options, torchrun, whole, tmp_path, num
):
    """Two began; one and four end with their weights, up to the order of sums."""
    output = tmp_path / "output"
    shutil.copytree(whole, output)
    (output / "model_final.pth").unlink()
    (output / "last_checkpoint").write_text("model_0000001.pth")
    argv = ["--resume", *options(output, DATASETS__TEST=())]
    assert torchrun(num, train, argv)[0] == 0
    assert f"began with 2 processes and goes on with {num}" in (output / "log.txt").read_text()
    weights = final_weights(output)
    for name, expected in final_weights(whole).items():
        difference = (weights[name].double() - expected.double()).norm()
        assert difference <= 1e-4 * expected.double().norm() + 1e-6, name


@pytest.mark.parametrize("num", [1, 3])
def test_an_evaluation_is_that_of_two_processes_to_the_last_bit(
    options, torchrun, whole, tmp_path, num
):
    weights = whole / "model_final.pth"
    argv = ["--eval-only", *options(tmp_path, MODEL__WEIGHTS=weights)]
    assert torchrun(num, train, argv)[0] == 0
    assert detections(tmp_path) == detections(whole)


# ------------------------------------------------------------------ failures


def fail_in_second_process():
    run_step = Trainer.run_step

    def fail(trainer):
        if trainer.iter == 1 and os.environ["RANK"] == "1":
            raise UserError("a mistake of the second process")
        run_step(trainer)

    Trainer.run_step = fail


def test_a_failure_is_told_once_with_its_process(options, torchrun, tmp_path):
    argv = options(tmp_path, DATASETS__TEST=())
    status, (printed, other) = torchrun(2, train, argv, fail_in_second_process)
    said = f"a mistake of the second process (process 1 of 2; details: {tmp_path}/log.txt.rank1)"
    assert (status, other) == (1, f"error: {said}\n")
    assert "error: " not in printed
    assert "stopped by" not in printed


def fail_twice_with_agents_that_count_for_themselves():
    """As if the second process were of an agent that has started its processes anew before."""
    os.environ["TORCHELASTIC_RESTART_COUNT"] = os.environ["RANK"]

    def fail(trainer):
        raise UserError("a mistake of both processes")

    Trainer.run_step = fail


def test_a_failure_of_all_is_told_once(options, torchrun, tmp_path):
    argv = options(tmp_path, DATASETS__TEST=())
    change = fail_twice_with_agents_that_count_for_themselves
    status, printed = torchrun(2, train, argv, change)
    assert (status, "".join(printed).count("a mistake of both processes")) == (1, 1)


def test_mistakes_are_found_by_the_first_process_alone(options, torchrun, tmp_path):
    argv = ["--num-gpus", "2", *options(tmp_path)]
    status, (printed, other) = torchrun(2, train, argv)
    assert status == 1
    assert printed.count("error: torchrun starts the processes") == printed.count("error: ") == 1
    assert other == ""
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ predict


def test_detections_of_predict_are_those_of_one_process(detector, torchrun, tmp_path):
    """An image cannot be read: it is named once."""
    (tmp_path / "images").mkdir()
    for file in detector.files:
        shutil.copy(file, tmp_path / "images")
    (tmp_path / "images/1.5.jpg").write_text("no image")
    command = ["predict", str(detector.weights), str(tmp_path / "images"), "--output"]
    for num in (1, 3):
        status, (printed, *others) = torchrun(
            num, run_program, command_line.main, [*command, str(tmp_path / f"{num}")]
        )
        assert status == 1
        assert printed.count("WARNING: the image") == printed.count("error: ") == 1
        assert not any(others)
    one, three = (
        {path.name: path.read_text() for path in (tmp_path / num).iterdir()} for num in ("1", "3")
    )
    assert one.keys() >= {"detections.jsonl", "predictions.json"}
    assert three == one
