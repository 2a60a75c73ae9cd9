"""Trainings under torchrun, on the CPU: they are those of one process, and survive a kill.

torchrun's agents run in processes that are forked from a server that has imported everything, and
fork theirs, which takes seconds less than starting Python for each.
"""

import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from conftest import ROOT
from detectron2.utils.events import get_event_storage
from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import train_net
from retinanet_plugin import __main__ as command_line
from retinanet_plugin.engine import Trainer
from retinanet_plugin.errors import UserError
from retinanet_plugin.meta_arch import ModularRetinaNet

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")
multiprocessing.set_forkserver_preload(
    ["retinanet_plugin.engine", "retinanet_plugin.data.digits", "pytest", "train_net"]
)


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory):
    """``torchrun(num, function, *args)``: runs a function in so many processes.

    It returns the lowest exit status of its agents, and what each process has printed; of an agent,
    the processes are in the order of their ranks. ``min_agents`` may go on alone.
    """
    place_to_meet = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def run(num, function, *args, agents=1, min_agents=None, restarts=0):
        logs = [tmp_path_factory.mktemp("logs") for _ in range(agents)]
        # An agent is lost when it is not heard of for 8 seconds; a late one is waited for.
        meeting = {"is_host": False, "last_call_timeout": 4, "keep_alive_interval": 1,
                   "keep_alive_max_attempt": 8}  # fmt: skip
        configs = [
            LaunchConfig(
                min_nodes=min_agents or agents, max_nodes=agents, nproc_per_node=num // agents,
                max_restarts=restarts, run_id=logs[0].name, start_method="fork",
                rdzv_backend="c10d", rdzv_endpoint=f"localhost:{place_to_meet.port}",
                rdzv_configs=meeting, logs_specs=DefaultLogsSpecs(str(folder), redirects=Std.ALL),
            )
            for folder in logs
        ]  # fmt: skip
        context = multiprocessing.get_context("forkserver")
        running = [context.Process(target=run_agent, args=(x, function, args)) for x in configs]
        for agent in running:
            agent.start()
        for agent in running:
            agent.join()
        printed = [
            "".join(path.read_text() for path in sorted(of_agent.glob(f"*/attempt_*/{i}/std*.log")))
            for of_agent in logs
            for i in range(num // agents)
        ]
        return min(agent.exitcode for agent in running), printed

    return run


def run_agent(config, function, args):
    """What ``torchrun`` does, in a group of processes that can be killed together."""
    os.setpgrp()
    try:
        elastic_launch(config, function)(*args)
    except ChildFailedError as failed:
        sys.exit(failed.get_first_failure()[1].exitcode)


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


def end_in_third_step(end):
    """``end(trainer)``, unless torchrun has started this process anew."""
    run_step = Trainer.run_step

    def ended(trainer):
        if trainer.iter == 2:
            end(trainer)
        run_step(trainer)

    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        Trainer.run_step = ended


def kill_second_process():
    def kill(trainer):
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    end_in_third_step(kill)


def lose_first_agent():
    """With all its processes, as with its machine."""

    def lose(trainer):
        if os.environ["RANK"] == "0":
            os.killpg(0, signal.SIGKILL)

    end_in_third_step(lose)


def assert_nothing_is_double(output):
    lines = (output / "metrics.json").read_text().splitlines()
    iterations = [json.loads(line)["iteration"] for line in lines]
    assert iterations == sorted(set(iterations)) != []


def assert_same_weights_up_to_order_of_sums(output, whole):
    weights = final_weights(output)
    for name, expected in final_weights(whole).items():
        difference = (weights[name].double() - expected.double()).norm()
        assert difference <= 1e-4 * expected.double().norm() + 1e-6, name


def test_a_training_of_two_agents_survives_a_kill_and_ends_as_without(
    options, torchrun, whole, tmp_path
):
    """What an earlier training left there is not gone on from."""
    shutil.copy(whole / "model_final.pth", tmp_path)
    argv = options(tmp_path, SEED=3)
    status, printed = torchrun(2, train, argv, kill_second_process, agents=2, restarts=1)
    other, first = sorted(printed)
    assert status == 0, first
    assert first.count(f"anew: the training goes on from {tmp_path}/model_0000001.pth") == 1
    assert "error: " not in first  # torchrun says which process was killed
    if "stopped by SIGTERM" in first:  # it was in a step
        assert "--resume goes on, if torchrun does not start it anew\n" in first
    assert other == ""
    weights = final_weights(whole)
    assert all(torch.equal(x, weights[name]) for name, x in final_weights(tmp_path).items())
    assert_nothing_is_double(tmp_path)
    assert detections(tmp_path) == detections(whole) != []


def test_the_loss_of_the_first_agent_leaves_the_other_to_go_on(options, torchrun, whole, tmp_path):
    """Alone, as ``--nnodes 1:2`` allows, in a folder with an earlier training."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    argv = options(tmp_path, SEED=3, DATASETS__TEST=())
    status, printed = torchrun(2, train, argv, lose_first_agent, agents=2, min_agents=1, restarts=1)
    log = (tmp_path / "log.txt").read_text()
    assert status == -signal.SIGKILL
    assert log.count(f"anew: the training goes on from {tmp_path}/model_0000001.pth") == 1, printed
    assert "began with 2 processes and goes on with 1" in log
    assert_same_weights_up_to_order_of_sums(tmp_path, whole)
    assert_nothing_is_double(tmp_path)
    assert os.listdir(tmp_path / "earlier-1")


def test_more_processes_go_on_with_the_same_batches(options, torchrun, whole, tmp_path):
    """Two began; four end with their weights, up to the order of sums."""
    output = tmp_path / "output"
    shutil.copytree(whole, output)
    (output / "model_final.pth").unlink()
    (output / "last_checkpoint").write_text("model_0000001.pth")
    argv = ["--resume", *options(output, DATASETS__TEST=())]
    assert torchrun(4, train, argv)[0] == 0
    assert "began with 2 processes and goes on with 4" in (output / "log.txt").read_text()
    assert_same_weights_up_to_order_of_sums(output, whole)


# ------------------------------------------------------------------ evaluation


@pytest.fixture(scope="module")
def mixed(options, torchrun, tmp_path_factory):
    """The folder of a training with batch norms, of which each process has its own statistics."""
    output = tmp_path_factory.mktemp("torchrun") / "mixed"
    values = {"MODEL__RESNETS__NORM": "BN", "MODEL__FPN__NORM": "GN", "SOLVER__MAX_ITER": 2}
    status, printed = torchrun(2, train, options(output, **values))
    assert status == 0, printed
    return output


@pytest.fixture
def served(mixed):
    """A server of its weights, and what was fetched from it."""
    fetched = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            fetched.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=mixed)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", fetched
        server.shutdown()


def set_cache(folder):
    os.environ["FVCORE_CACHE"] = folder


@pytest.mark.parametrize("num", [1, 5])
def test_an_evaluation_is_that_of_two_processes_to_the_last_bit(
    options, torchrun, mixed, served, tmp_path, num
):
    """Of four images, so that one of five processes has none; the first one fetches the weights."""
    address, fetched = served
    values = {"MODEL__RESNETS__NORM": "BN", "MODEL__FPN__NORM": "GN"}
    argv = options(tmp_path, MODEL__WEIGHTS=f"{address}/model_final.pth", **values)
    change = partial(set_cache, str(tmp_path / "cache"))
    status, (printed, *others) = torchrun(num, train, ["--eval-only", *argv], change)
    assert status == 0, printed
    assert detections(tmp_path) == detections(mixed) != []
    assert fetched == ["/model_final.pth"]
    assert not any(others)


# ------------------------------------------------------------------ failures


def spoil(ranks):
    """The loss of an image of each of these processes, in its second step."""
    mean = ModularRetinaNet.preprocess_image

    def spoiled(model, inputs):
        images = mean(model, inputs)
        if int(os.environ["RANK"]) in ranks and get_event_storage().iter == 1:
            images.tensor[0] = math.nan
        return images

    ModularRetinaNet.preprocess_image = spoiled


def test_a_failure_is_told_once_with_its_process(options, torchrun, tmp_path):
    """Whose step is kept, of which the mean of all losses would not say whose it is."""
    argv = options(tmp_path, DATASETS__TEST=())
    status, (printed, other) = torchrun(2, train, argv, partial(spoil, {1}))
    assert status == 1
    assert other.startswith("error: loss_cls is nan and loss_box_reg is nan in process 1 in itera")
    assert f"the step of process 1 is in {tmp_path}/failure-000001-rank1, look at it" in other
    assert other.endswith(f" (process 1 of 2; details: {tmp_path}/log.txt.rank1)\n")
    assert other.count("\n") == 1
    assert len(list(tmp_path.glob("failure-*"))) == 1
    assert "error: " not in printed
    assert "stopped by" not in printed


def test_losses_of_two_processes_that_are_not_finite_are_one_failure(options, torchrun, tmp_path):
    argv = options(tmp_path, DATASETS__TEST=())
    status, printed = torchrun(2, train, argv, partial(spoil, {0, 1}))
    (folder,) = tmp_path.glob("failure-*")
    (told,) = (line for line in "".join(printed).splitlines() if "error: " in line)
    assert status == 1
    assert f" is in {folder}, look at it" in told
    assert f"in process {1 if folder.name.endswith('-rank1') else 0} in iteration 1" in told


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
    """And told once, though torchrun tries again."""
    argv = ["--num-gpus", "2", *options(tmp_path)]
    status, (printed, other) = torchrun(2, train, argv, restarts=2)
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
