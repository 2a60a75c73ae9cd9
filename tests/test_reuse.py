"""How other projects use the package: its parts, its registration, its packaging."""

import shutil
import subprocess
import sys
from zipfile import ZipFile

import pytest
import torch
from conftest import ROOT
from fvcore.common.registry import Registry

import retinanet_plugin
from retinanet_plugin import sigmoid_focal_loss

SECOND_PROJECT = """
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from retinanet_plugin import add_retinanet_config
cfg = get_cfg(); add_retinanet_config(cfg)

cfg.MODEL.META_ARCHITECTURE = "ModularRetinaNet"
cfg.MODEL.BACKBONE.NAME = "build_fpn_p3p7_backbone"
cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
cfg.MODEL.DEVICE = "cpu"
model = build_model(cfg)
print(type(model).__name__, model.num_classes)
"""


def python(code, env, cwd=None):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=env, cwd=cwd, capture_output=True, text=True,
    )  # fmt: skip


def test_reuse_in_two_lines(clean_env, tmp_path):
    process = python(SECOND_PROJECT, clean_env, tmp_path)
    assert process.stdout == "ModularRetinaNet 80\n", process.stderr


def test_focal_loss_alone():
    logits = torch.zeros(2, 3, requires_grad=True)
    # One anchor of class 1, one of background; every p is 0.5.
    loss = sigmoid_focal_loss(logits, torch.tensor([1, 3]), alpha=0.25, gamma=2.0)
    expected = (0.25 + 5 * 0.75) * 0.25 * torch.tensor(2.0).log()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad[0, 1] < 0 < logits.grad[0, 0]


def test_without_detectron2_the_import_says_what_to_do(clean_env):
    code = "import sys; sys.modules['detectron2'] = None; import retinanet_plugin"
    process = python(code, clean_env)
    assert process.returncode == 1
    assert "ImportError: retinanet_plugin needs Detectron2 (0.6 or main)" in process.stderr
    assert "pip install" in process.stderr


def test_builds_without_torch_and_requires_neither(tmp_path, clean_env):
    for name in ("setup.py", "README.md", "pyproject.toml", "retinanet_plugin"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    process = python(
        "import sys; sys.modules['torch'] = sys.modules['detectron2'] = None; "
        "from setuptools import build_meta; build_meta.build_wheel('dist')",
        clean_env,
        tmp_path,
    )
    assert process.returncode == 0, process.stderr
    (wheel,) = (tmp_path / "dist").glob("retinanet_plugin-*.whl")
    metadata = next((tmp_path / "retinanet_plugin.egg-info").glob("requires.txt")).read_text()
    assert "fvcore" in metadata
    assert "torch" not in metadata
    assert "detectron2" not in metadata
    modules = [name for name in ZipFile(wheel).namelist() if name.endswith(".py")]
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "retinanet_plugin").rglob("*.py")}
    assert set(modules) == sources


def test_commands_explain_themselves(clean_env):
    process = subprocess.run(
        [sys.executable, "-m", "retinanet_plugin", "--help"],
        env=clean_env, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0
    assert "digits" in process.stdout
    assert "report" in process.stdout


@pytest.mark.parametrize("registry", ["CLS_LOSS", "BOX_LOSS", "MATCHER", "RETINANET_HEAD"])
def test_registries_are_fvcores(registry):
    assert isinstance(getattr(retinanet_plugin, f"{registry}_REGISTRY"), Registry)
