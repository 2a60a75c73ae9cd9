"""What processes of torchrun know of those before them, whose training they find."""

import json
import socket
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import CfgNode

from retinanet_plugin.engine import Trainer, goes_on_after_restart, restarts, torchrun
from retinanet_plugin.engine.restarts import mistake_was_told, note_told_mistake, note_training
from retinanet_plugin.errors import UserError


@pytest.fixture
def cfg(tmp_path):
    """Of a training that has a checkpoint."""
    torch.save({"model": {}, "iteration": 7}, tmp_path / "model_0000007.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    return CfgNode({"OUTPUT_DIR": str(tmp_path)})


@pytest.fixture
def start(tmp_path, monkeypatch):
    """``start(agent, other, ...)``: as if agents of these names started two processes."""

    def as_first_process(agent, *others, count=0):
        file = tmp_path / "logs" / agent / f"attempt_{count}/0/error.json"
        (tmp_path / "logs" / agent).mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        monkeypatch.setattr(restarts, "is_torchrun", lambda: True)
        monkeypatch.setattr(restarts, "num_processes", lambda: 1 + len(others))
        own = restarts._agent()
        names = [own, *(own.replace(agent, other) for other in others)]
        begun = [(tmp_path / "logs" / x / restarts._BEGUN).exists() for x in (agent, *others)]
        sent = {restarts._AGENT: names, restarts._BEGUN: begun}
        monkeypatch.setattr(restarts, "receive", lambda name, sender: sent[name][sender])
        group = SimpleNamespace(all_gather=lambda name: names, is_main_process=lambda: True)
        monkeypatch.setattr(restarts, "comm", group)

    return as_first_process


def test_agents_that_stay_go_on(cfg, start):
    start("first", "second")
    assert not goes_on_after_restart(cfg)  # it is of an earlier training
    note_training(cfg.OUTPUT_DIR)
    start("first", "second", count=1)
    assert goes_on_after_restart(cfg)


def test_one_that_is_left_is_enough_each_time(cfg, start):
    start("first", "second")
    note_training(cfg.OUTPUT_DIR)
    start("third", "second")  # and the third is the first process now
    assert goes_on_after_restart(cfg)
    start("third", "fourth")
    assert goes_on_after_restart(cfg)


def test_another_start_of_the_command_does_not_go_on(cfg, start):
    start("first", "second")
    note_training(cfg.OUTPUT_DIR)
    start("third", "fourth")
    assert not goes_on_after_restart(cfg)
    note_training(cfg.OUTPUT_DIR)  # and what is there is its own from here on
    start("first", "second")
    assert not goes_on_after_restart(cfg)


def test_a_training_without_torchrun_is_of_no_agent(cfg, start, monkeypatch):
    start("first")
    note_training(cfg.OUTPUT_DIR)
    monkeypatch.undo()
    note_training(cfg.OUTPUT_DIR)
    start("first")
    assert not goes_on_after_restart(cfg)


def test_an_agent_without_a_folder_begins_anew(cfg, start, monkeypatch):
    """As of ``torchrun --log-dir /dev/null``."""
    start("first")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "")
    restarts.comm.all_gather = lambda name: [name]
    note_training(cfg.OUTPUT_DIR)
    assert not goes_on_after_restart(cfg)


def test_a_process_that_still_ends_is_waited_for(cfg, start, monkeypatch):
    start("first")
    note_training(cfg.OUTPUT_DIR)
    waited = []
    monkeypatch.setattr(restarts, "refuse_if_in_use", lambda *args: waited.append(args))
    assert goes_on_after_restart(cfg)
    assert waited == [(cfg.OUTPUT_DIR, 150.0)]


def test_what_is_done_again_from_the_beginning_is_not_there_twice(instant_cfg, tmp_path):
    """A training that has ended before its first checkpoint."""
    instant_cfg.DATASETS.TEST = ()
    metrics, of_before = tmp_path / "metrics.json", '{"iteration": 0, "total_loss": 1.5}\n'
    metrics.write_text(of_before)
    Trainer(instant_cfg).train()
    lines = metrics.read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1]
    assert (tmp_path / "earlier-1/metrics.json").read_text() == of_before


def test_a_restart_without_a_checkpoint_says_so(cfg, start, tmp_path, capsys):
    start("first")
    note_training(cfg.OUTPUT_DIR)
    for file in ("model_0000007.pth", "last_checkpoint"):
        (tmp_path / file).unlink()
    assert not goes_on_after_restart(cfg)
    assert "goes on at its beginning, since it has no checkpoint yet" in capsys.readouterr().out


def test_an_agent_that_has_ended_is_told_of(monkeypatch):
    """And not waited for inside of PyTorch, where no signal would be heard."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "1", "WORLD_SIZE": "2"}
    for name, value in {**place, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torchrun, "is_torchrun", lambda: True)
    monkeypatch.setattr(torchrun, "_SERVED_S", 0.1)
    with pytest.raises(UserError, match=rf"agents at 127.0.0.1:{port} does not answer: look"):
        torchrun.receive("anything")
    assert torchrun.is_first_to_fail()
    assert not torchrun.others_failed()


def test_a_mistake_is_told_once(start):
    start("first")
    assert not mistake_was_told()
    note_told_mistake()
    start("first", count=1)
    assert mistake_was_told()
    start("second")
    assert not mistake_was_told()


def test_a_mistake_after_a_training_has_begun_may_be_a_machines(cfg, start):
    """Also where an agent has joined it since, after which PyTorch counts no restart."""
    start("first")
    note_training(cfg.OUTPUT_DIR)
    for agents in (("first",), ("second", "first"), ("first", "second")):
        start(*agents)
        note_told_mistake()
        assert not mistake_was_told()


def test_a_mistake_is_told_once_after_a_restart_without_a_training(start):
    """Of which a machine was the cause."""
    start("first", count=1)
    note_told_mistake()
    assert mistake_was_told()
