"""The ten commands of docs/tutorial.md, one after the other."""

import re
import runpy
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, forget

from retinanet_plugin.__main__ import main
from retinanet_plugin.commands import new
from retinanet_plugin.data import digits
from retinanet_plugin.data.planning.choice import Machine
from retinanet_plugin.engine.step_cost import StepCost

# Two steps, and what random weights find.
FEW_STEPS = {
    "SOLVER.MAX_ITER": "2", "SOLVER.WARMUP_ITERS": "1", "SOLVER.IMS_PER_BATCH": "2",
    "TEST.EVAL_PERIOD": "2", "MODEL.RETINANET.SCORE_THRESH_TEST": "0.001",
}  # fmt: skip


def commands():
    """Each as a list of words."""
    page = (ROOT / "docs/tutorial.md").read_text()
    shell = re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S)
    return [shlex.split(block.replace("\\\n", " ")) for block in shell]


def test_the_commands_of_the_tutorial(tmp_path, monkeypatch, clean_env, capsys):
    for name in ("onnxscript", "onnxruntime", "openvino", "nncf", "supervision"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    for name in ("train_net.py", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr(digits, "NUM_IMAGES", {"train": 16, "val": 8})
    monkeypatch.setattr(new, "measure_machine", lambda *_: Machine("cpu", 0.5, 0.0, 1.6))
    monkeypatch.setattr(
        new, "measure_fitting_batch", lambda cfg: (cfg.SOLVER.IMS_PER_BATCH, StepCost(0.4, 0, 0.05))
    )
    forget("digits_train", "digits_val", "plan_train", "plan_val")  # of other tests
    assert len(commands()) == 10
    for python, *words in commands():
        assert python == "python"
        if words[:2] == ["-m", "retinanet_plugin"]:
            main(words[2:])
        elif words[0] == "train_net.py":
            opts = ["--opts", *(word for option in FEW_STEPS.items() for word in option)]
            subprocess.run([sys.executable, *words, *opts], env=clean_env, check=True)
        else:
            monkeypatch.setattr(sys, "argv", words)
            runpy.run_path(words[0], run_name="__main__")
    plan = tmp_path / "plans/digits"
    assert (plan / "output/model_final.pth").exists()
    assert (plan / "report/report.html").exists()
    assert (tmp_path / "found/annotations.json").exists()
    assert len(list((tmp_path / "found/images").iterdir())) == 8
    assert (tmp_path / "digits.onnx").exists()
    assert (tmp_path / "digits.xml").exists()
