"""Right in whatever environment Python is started: what a machine, a shell or a caller has set."""

import subprocess
import sys

from conftest import ROOT

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
