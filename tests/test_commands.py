"""python -m retinanet_plugin COMMAND, in this process."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from retinanet_plugin.__main__ import main
from retinanet_plugin.commands import compare_losses
from retinanet_plugin.commands.compare_losses import ROWS
from retinanet_plugin.commands.one_trial import changed_values
from retinanet_plugin.config import load_config
from retinanet_plugin.errors import UserError

COMPARE = str(ROOT / "configs/digits/compare_losses.yaml")


@pytest.fixture
def data_opts(digits_entries, tmp_path):
    train, val = digits_entries
    return [
        "DATASETS.COCO_JSON", str([list(train), list(val)]),
        "DATASETS.TRAIN", str((train[0],)),
        "DATASETS.TEST", str((val[0],)),
        "OUTPUT_DIR", str(tmp_path),
    ]  # fmt: skip


def test_only_what_a_command_needs_is_imported(clean_env):
    """Matplotlib takes a second or two; the list of all commands imports none of them."""
    code = """
import contextlib, sys
import retinanet_plugin.engine
from retinanet_plugin.__main__ import main
for arguments in (["--help"], ["predict", "--help"], ["export", "--help"], ["doctor", "--help"]):
    with contextlib.suppress(SystemExit):
        main(arguments)
    print("IMPORTED", sys.modules.keys() & {"matplotlib", "retinanet_plugin.data.digits"})
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], env=clean_env, capture_output=True, text=True, check=True
    )
    assert ran.stdout.count("IMPORTED set()") == 4, ran.stdout
    assert "predict Detect in images, folders, globs" in " ".join(ran.stdout.split())


def test_digits_into_a_folder_with_files_is_one_sentence(tmp_path):
    (tmp_path / "mine.txt").write_text("notes")
    with pytest.raises(SystemExit, match=rf"error: {tmp_path} has files, such as mine\.txt: name"):
        main(["digits", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: the folder /sys/digits cannot be written to"):
        main(["digits", "/sys/digits"])  # root may, and cannot


def test_figures_of_an_untrained_model_are_refused(data_opts):
    with pytest.raises(SystemExit, match=r"error: MODEL\.WEIGHTS is empty"):
        main(["focal-loss-figures", "--config-file", COMPARE, "--opts", *data_opts])


@pytest.mark.parametrize("number", ["0", "-1", "2.5", "many"])
def test_numbers_of_images(number, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["browse", "--config-file", COMPARE, "--num-images", number])
    assert "argument --num-images" in capsys.readouterr().err


def test_without_opencv_the_other_commands_run(clean_env):
    code = (
        "import sys; sys.modules['cv2'] = None; from retinanet_plugin.__main__ import main; "
        "main(sys.argv[1:])"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    process = subprocess.run([*command, "--help"], env=clean_env, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    process = subprocess.run(
        [*command, "digits", "somewhere"], env=clean_env, capture_output=True, text=True
    )
    assert process.returncode == 1
    assert "error: the digits need scikit-learn and OpenCV" in process.stderr
    assert "Traceback" not in process.stderr


def test_compare_losses_continues_and_takes_the_best_learning_rate(
    data_opts, tmp_path, capsys, monkeypatch
):
    """With the results of all runs there, nothing is trained and the table is written."""
    lines = []
    for i, (row, (_, keys)) in enumerate(ROWS.items()):
        for lr, seed, ap in ((0.1, 1, 5.0), (0.2, 1, 10.0 + i), (0.4, 1, 6.0), (0.2, 2, 14.0 + i)):
            cfg = load_config(COMPARE, [*data_opts, *map(str, keys)])
            cfg.SOLVER.BASE_LR, cfg.SEED = lr, seed
            scores = {"AP": ap, "AP50": 2 * ap}
            config = changed_values(cfg)
            lines.append({"row": row, "lr": lr, "seed": seed, "scores": scores, "config": config})
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    arguments = ["--seeds", "1", "2", "--opts", *data_opts]
    main(["compare-losses", "--config-file", COMPARE, *arguments])
    assert "32 trainings are there, at least 0 to go" in capsys.readouterr().out
    table = (tmp_path / "results.md").read_text().splitlines()
    assert len(table) == 2 + len(ROWS)
    assert table[2] == "| CE, prior 0.5 | 0.2 | 2 | 12.0 (10.0 to 14.0) | 24.0 | diverges |"
    assert (tmp_path / "results.png").stat().st_size > 0

    with pytest.raises(SystemExit, match=r"results\.jsonl has .* of another config"):
        main(["compare-losses", "--config-file", COMPARE, *arguments, "SOLVER.MAX_ITER", "7"])

    def fail(*_):
        raise UserError("1 trainings failed")

    monkeypatch.setattr(compare_losses.Trials, "run", fail)
    (tmp_path / "results.md").unlink()
    with pytest.raises(SystemExit, match="1 trainings failed"):
        main(["compare-losses", "--config-file", COMPARE, *arguments])
    assert (tmp_path / "results.md").read_text().splitlines() == table


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_the_comparison_see_the_imbalance(row):
    cfg = load_config(COMPARE)
    cfg.merge_from_list(ROWS[row][1])
    model = build_model(cfg).eval()
    with torch.no_grad():
        features = model.backbone(torch.zeros(1, 3, 160, 160))
        anchors = model.anchor_generator([features[name] for name in model.in_features])
    assert sum(len(boxes) for boxes in anchors) >= 5000


@pytest.mark.parametrize("has_iou_branch", ["False", "True"])
def test_focal_loss_figures(data_opts, tmp_path, capsys, has_iou_branch):
    config = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN.yaml")
    branch = ["MODEL.RETINANET.IOU_BRANCH", has_iou_branch]
    model = build_model(load_config(config, branch))
    DetectionCheckpointer(model, save_dir=str(tmp_path)).save("random")
    opts = [*data_opts, *branch, "MODEL.WEIGHTS", str(tmp_path / "random.pth")]
    main(["focal-loss-figures", "--config-file", config, "--opts", *opts])
    assert "foreground and" in capsys.readouterr().out
    for name in ("focal_loss_curves.png", "focal_loss_shares.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
