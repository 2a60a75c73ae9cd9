"""train_net.py as a user runs it: train, resume, evaluate, in processes of their own."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from retinanet_plugin.engine import argument_parser, setup_config

INSTANT = ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml"


@pytest.fixture
def run(digits_entries, tmp_path, clean_env):
    """``run(*arguments, opts=[...])``: the finished process of the instant test, on the digits."""

    def call(*arguments, opts=()):
        train, val = digits_entries
        command = [
            sys.executable, str(ROOT / "train_net.py"),
            "--config-file", str(INSTANT),
            *arguments,
            "--opts",
            "DATASETS.COCO_JSON", str([list(train), list(val)]),
            "DATASETS.TRAIN", str((train[0],)),
            "DATASETS.TEST", str((val[0],)),
            "DATALOADER.NUM_WORKERS", "0",
            "OUTPUT_DIR", str(tmp_path / "output"),
            *opts,
        ]  # fmt: skip
        return subprocess.run(
            command, cwd=tmp_path, env=clean_env, capture_output=True, text=True, timeout=300
        )

    return call


def test_train_resume_evaluate_draw(run, tmp_path, clean_env, digits_entries):
    output = tmp_path / "output"
    trained = run()
    assert trained.returncode == 0, trained.stderr
    assert "Evaluation results for" in trained.stdout
    # After two iterations there may be no detection to look at.
    assert f"weights in {output}/model_final.pth" in trained.stdout
    first = torch.load(output / "model_final.pth", weights_only=True)["model"]
    assert first["loss_normalizer"] != 100

    # Resuming continues behind the second iteration, with the moving average of the first run.
    resumed = run("--resume", opts=["SOLVER.MAX_ITER", "3"])
    assert resumed.returncode == 0, resumed.stderr
    assert "Starting training from iteration 2" in resumed.stdout
    second = torch.load(output / "model_final.pth", weights_only=True)["model"]
    metrics = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    (last,) = [m for m in metrics if m["iteration"] == 2 and "total_loss" in m]
    foreground = 2 * last["num_pos_anchors"]
    assert second["loss_normalizer"].item() == pytest.approx(
        0.9 * first["loss_normalizer"].item() + 0.1 * foreground
    )

    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    results = output / "inference" / digits_entries[1][0] / "coco_instances_results.json"
    results.unlink()
    evaluated = run("--eval-only", opts=[*weights, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.001"])
    assert evaluated.returncode == 0, evaluated.stderr
    assert "Starting training" not in evaluated.stdout
    assert "Per-category bbox AP" in evaluated.stdout
    detections = json.loads(results.read_text())
    assert {d["image_id"] for d in detections} <= {1, 2, 3, 4}
    assert detections

    (command,) = re.findall(r"where it fails: python (.*)", evaluated.stdout)
    reported = subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=tmp_path, env=clean_env, capture_output=True, text=True,
    )  # fmt: skip
    assert reported.returncode == 0, reported.stderr
    assert json.loads((output / "report/report.json").read_text())["num_detections"] > 0


def test_a_mistake_ends_in_one_line_and_status_1(run):
    process = run(opts=["MODEL.RETINANET.NUM_CLASSES", "11"])
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    error = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert re.search(r"NUM_CLASSES.* is 11 but .* has 10 categories", error[0])


@pytest.mark.skipif(torch.cuda.device_count() >= 99, reason="there are that many")
def test_more_gpus_than_there_are(run):
    process = run("--num-gpus", "99")
    assert process.returncode == 1
    assert "--num-gpus is 99 but PyTorch finds" in process.stderr


@pytest.mark.parametrize(
    "form",
    [
        ["--opts", "SOLVER.MAX_ITER", "7", "SOLVER.BASE_LR", "0.5"],
        ["SOLVER.MAX_ITER", "7", "SOLVER.BASE_LR", "0.5"],
        ["--num-gpus", "1", "--opts", "SOLVER.MAX_ITER", "7", "SOLVER.BASE_LR", "0.5"],
    ],
)
def test_both_forms_of_options(form):
    config = str(ROOT / "configs/Base-RetinaNet.yaml")
    cfg = setup_config(argument_parser().parse_args(["--config-file", config, *form]))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (7, 0.5)
    assert cfg.is_frozen()


def test_all_options_of_the_contract():
    options = (
        "--resume --eval-only --num-gpus 2 --num-machines 3 --machine-rank 1 --dist-url tcp://x"
    )
    args = argument_parser().parse_args(options.split())
    assert (args.resume, args.eval_only, args.dist_url) == (True, True, "tcp://x")
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (2, 3, 1)
