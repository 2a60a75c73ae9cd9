"""What a user sees of a run: a page on the console, all of it in log.txt."""

import argparse
import json
import logging
import shutil
import sys
import warnings

import pytest
import torch
from detectron2.utils.events import EventStorage, JSONWriter
from detectron2.utils.logger import setup_logger

from retinanet_plugin.engine import Trainer, set_up
from retinanet_plugin.engine.checks.startup_log import log_on_console
from retinanet_plugin.engine.console_log import keep_warnings_off_the_console
from retinanet_plugin.engine.failures.writers import DispensableWriter

ARGS = argparse.Namespace(config_file="", eval_only=False)


@pytest.fixture
def log(instant_cfg, tmp_path):
    """``log()`` is the text of log.txt; the console is that of a run of ``instant_cfg``."""
    return lambda: (tmp_path / "log.txt").read_text()


def test_the_console_is_a_page_and_the_log_has_all(instant_cfg, log, capsys):
    with log_on_console():
        logging.getLogger("detectron2.config").warning("this is probably not meant")
    set_up(instant_cfg, ARGS)
    Trainer(instant_cfg).build_test_loader(instant_cfg, instant_cfg.DATASETS.TEST[0])
    console = capsys.readouterr().out
    assert "this is probably not meant" in console
    assert "log.txt" in console
    assert "Distribution of instances" in console
    assert "BASE_LR" not in console
    assert "RetinaNetHead" not in console
    assert len(console.splitlines()) < 20
    for text in ("this is probably not meant", "BASE_LR", "RetinaNetHead", "PyTorch built with"):
        assert text in log()


def test_there_is_one_console_however_often_it_is_set_up(instant_cfg, log, capsys):
    for _ in range(2):
        set_up(instant_cfg, ARGS)
    logging.getLogger("detectron2").warning("once")
    console = capsys.readouterr().out
    assert console.count("once") == log().count("once") == 1


def test_colours_are_for_a_terminal(instant_cfg, log, capsys, monkeypatch):
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal)
        set_up(instant_cfg, ARGS)
        capsys.readouterr()
        logging.getLogger("detectron2.trainer").info("\x1b[32mgreen\x1b[0m")
        assert ("\x1b[32mgreen" in capsys.readouterr().out) == is_terminal
        logging.getLogger("detectron2").handlers.clear()
        setup_logger.cache_clear()


def test_long_tables_are_cut_and_said(instant_cfg, log, capsys):
    set_up(instant_cfg, ARGS)
    capsys.readouterr()
    logging.getLogger("detectron2.evaluation").info("\n".join(map(str, range(1000))))
    console = capsys.readouterr().out
    assert console.endswith("\n59\n... 940 more lines are in log.txt\n")
    assert "\n999\n" in log()


def test_files_that_are_removed_during_a_training_are_made_anew(instant_cfg, log, tmp_path, capsys):
    set_up(instant_cfg, ARGS)
    metrics = tmp_path / "metrics.json"
    writer = DispensableWriter(JSONWriter(str(metrics)), str(tmp_path))
    with EventStorage() as storage:
        for iteration in range(3):
            storage.iter = iteration
            storage.put_scalar("loss", 1.0 + iteration)
            writer.write()
            if iteration == 0:
                shutil.rmtree(tmp_path)
    lines = metrics.read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [1.5, 2.0]  # medians so far
    assert log().count("metrics.json was removed while the training ran") == 1
    assert "was removed while the training ran" in capsys.readouterr().out


@pytest.mark.usefixtures("own_warnings")
def test_warnings_that_nobody_can_mend_are_in_the_log_alone(instant_cfg, log, capsys):
    keep_warnings_off_the_console()
    warn_from("/lib/site-packages/detectron2/old.py", "f is deprecated")  # before there is a log
    set_up(instant_cfg, ARGS)
    warn_from("/lib/site-packages/detectron2/old.py", "in an upcoming release")
    for _ in range(2):
        warn_from("/lib/site-packages/torch/data.py", "too many workers")
    warn_from("/home/user/loss.py", "g is deprecated")
    torch.jit.script(torch.nn.Identity())  # warns from a file of torch, and is called here
    console = capsys.readouterr().err
    for text, is_shown in (
        ("f is deprecated", False),
        ("in an upcoming release", False),
        ("too many workers", True),
        ("g is deprecated", True),
    ):
        assert console.count(text) == is_shown
        assert text in log()
    assert ("torch.jit.script" in console) == ("torch.jit.script" in log())


@pytest.fixture
def own_warnings():
    """All are shown on the console, and not by pytest."""
    logger = logging.getLogger("py.warnings")
    before = logger.propagate, list(logger.handlers)
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("always")
        warnings.showwarning = lambda *what: print(
            warnings.formatwarning(*what[:4]), file=sys.stderr
        )
        yield
    logger.propagate, logger.handlers[:] = before


def warn_from(file, text):
    """Warn as a function in ``file`` would."""
    exec(compile(f"import warnings; warnings.warn({text!r})", file, "exec"), {})
