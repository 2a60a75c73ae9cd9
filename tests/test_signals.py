"""Ctrl-C and SIGTERM: a training ends after its step, all else at once, and nothing is lost."""

import itertools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

from retinanet_plugin.__main__ import main
from retinanet_plugin.config import load_config
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.data.loading.loader_workers import leave_signals_to_main_process
from retinanet_plugin.engine import Trainer, stop_signals
from retinanet_plugin.engine.signals import (
    Stopped,
    after_the_step,
    at_once,
    has_arrived_anywhere,
    wait_to_be_ended,
)

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture
def cfg(digits_entries, tmp_path):
    register_coco_json(digits_entries)
    cfg = load_config(INSTANT)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (digits_entries[0][0],), (digits_entries[1][0],)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.SOLVER.MAX_ITER = 5
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def stopped_training(trainer):
    """The exit status of a training that is stopped."""
    with pytest.raises(Stopped) as stopped, stop_signals():
        trainer.train()
    return stopped.value.code


def build(cfg, resume=False):
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def raise_in(trainer, iteration):
    """A signal arrives in the step of an iteration."""

    def forward(model, inputs):
        if trainer.iter == iteration:
            signal.raise_signal(signal.SIGTERM)

    trainer.model.register_forward_pre_hook(forward)


@pytest.mark.parametrize("number", STATUS)
def test_at_once_outside_of_a_training(number, capsys):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, stop_signals():
        signal.raise_signal(number)
    assert stopped.value.code == STATUS[number]
    error = capsys.readouterr().err
    assert error == f"stopped by {number.name}: there was nothing to save\n"
    assert signal.getsignal(number) is before


def test_a_process_that_fails_knows_that_it_was_to_end():
    """torchrun's signal for the others of a killed process comes before or after they fail."""

    def step():
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(RuntimeError), stop_signals(), after_the_step():
        step()
    assert wait_to_be_ended()


def test_after_the_step_signals_are_noted():
    with stop_signals():
        with after_the_step():
            signal.raise_signal(signal.SIGTERM)
            assert has_arrived_anywhere() == signal.SIGTERM
            with pytest.raises(Stopped), at_once():
                pytest.fail("it goes on")
        # The second one kills the process, whatever it does.
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_what_runs_in_the_background_goes_on_ignoring():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals():
            signal.raise_signal(signal.SIGINT)  # nothing is raised
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_training_ends_after_the_step_and_goes_on_exactly(cfg, tmp_path, capsys):
    whole = build(cfg)
    whole.train()
    trainer = build(cfg)
    trainer.seed = whole.seed
    raise_in(trainer, 2)
    assert stopped_training(trainer) == 143
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    error = capsys.readouterr().err
    assert "3 of 5 iterations are done" in error
    assert "the same command with --resume goes on" in error
    resumed = build(cfg, resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


def test_an_evaluation_ends_at_once_and_is_done_when_it_goes_on(cfg, tmp_path, monkeypatch):
    cfg.TEST.EVAL_PERIOD = 2
    evaluated = []
    evaluate = Trainer.test

    def test(trainer, *args):
        evaluated.append(trainer.iter)
        if len(evaluated) == 1:
            signal.raise_signal(signal.SIGINT)
        return evaluate(*args)

    trainer = build(cfg)
    monkeypatch.setattr(Trainer, "test", test)
    assert stopped_training(trainer) == 130
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    trainer = build(cfg, resume=True)
    trainer.train()
    assert evaluated == [1, 2, 3, 5]  # when it goes on, before iteration 2


def test_reading_data_ends_at_once(cfg, tmp_path):
    trainer = build(cfg)
    mapper, calls = trainer.data_loader.mapper, []

    def slow(record):
        calls.append(record)
        if len(calls) == 4:  # the second image of iteration 1
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it goes on")
        return mapper(record)

    trainer.data_loader.mapper = slow
    assert stopped_training(trainer) == 143
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    assert build(cfg, resume=True).start_iter == 1


def test_the_final_evaluation_is_done_when_it_goes_on(cfg, tmp_path):
    trainer = build(cfg)
    raise_in(trainer, 4)
    assert stopped_training(trainer) == 143
    assert not hasattr(trainer, "_last_eval_results")
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    resumed = build(cfg, resume=True)
    resumed.train()
    assert resumed._last_eval_results


def test_workers_leave_signals_to_the_main_process(cfg):
    cfg.DATALOADER.NUM_WORKERS = 2
    trainer = build(cfg)
    batches = iter(trainer.data_loader)
    next(batches)
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    assert len(workers) == 2
    for worker, number in itertools.product(workers, STATUS):
        sender = f"import os; os.kill({worker.pid}, {int(number)})"
        subprocess.run([sys.executable, "-c", sender], check=True)
    for _ in range(20):
        next(batches)
    assert all(worker.is_alive() for worker in workers)
    workers[0].terminate()  # by the main process
    workers[0].join(10)
    assert not workers[0].is_alive()


class SharedTensors(torch.utils.data.Dataset):
    """A tensor, and the address of the worker's thread that hands tensors over."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        address, _ = multiprocessing.reduction.DupFd(1)._id
        return torch.zeros(1), address


def test_workers_say_nothing_when_the_main_process_leaves_in_the_middle_of_a_tensor(capfd):
    loader = torch.utils.data.DataLoader(
        SharedTensors(), num_workers=1, worker_init_fn=leave_signals_to_main_process,
        collate_fn=lambda batch: batch[0], multiprocessing_context="fork", prefetch_factor=1,
    )  # fmt: skip
    batches = iter(loader)
    _, address = next(batches)
    with socket.socket(socket.AF_UNIX) as leaving:
        leaving.connect(address)
    next(batches)  # the same thread hands it over after it has met the lost connection
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("program", "is_quiet"), [("-m", True), ("train.py", False)])
def test_ctrl_c_while_python_m_imports(program, is_quiet):
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.argv, sys.modules['detectron2'] = [{program!r}], None\n"
        "try: import retinanet_plugin\n"
        "except ImportError: sys.exit(signal.getsignal(signal.SIGINT) is signal.SIG_DFL)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == is_quiet


def test_ctrl_c_while_the_module_of_a_command_is_imported(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("retinanet_plugin.__main__.module_of", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main(["report"])
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_while_python_ends_needs_no_words(clean_env):
    script = (
        "import atexit, runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "atexit.register(signal.raise_signal, signal.SIGINT)\n"
        "sys.argv[1:] = ['--help']\n"
        "runpy.run_module('retinanet_plugin', run_name='__main__')"
    )
    ran = subprocess.run([sys.executable, "-c", script], env=clean_env, capture_output=True)
    assert (ran.returncode, ran.stderr) == (-signal.SIGINT, b"")


def test_train_net_in_a_terminal(digits_entries, tmp_path, clean_env):
    """Ctrl-C reaches all processes of the group."""
    train = list(digits_entries[0])
    command = [
        sys.executable, str(ROOT / "train_net.py"), "--config-file", INSTANT, "--opts",
        "DATASETS.COCO_JSON", str([train]), "DATASETS.TRAIN", str((train[0],)),
        "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "2", "SOLVER.MAX_ITER", "10000",
        "INPUT.MIN_SIZE_TRAIN", "(64,)", "OUTPUT_DIR", "output", "SOLVER.CHECKPOINT_PERIOD", "2",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, env=clean_env, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "output/last_checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, out + error
    assert "Traceback" not in out + error
    assert error.count("--resume") == 1
