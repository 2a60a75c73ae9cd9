"""python -m retinanet_plugin COMMAND, in this process."""
import json

import pytest
import torch
from conftest import ROOT
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from retinanet_plugin.__main__ import main
from retinanet_plugin.commands.compare_losses import ROWS, _Experiment
from retinanet_plugin.config import load_config

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


def test_digits_into_an_existing_folder_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=rf"error: {tmp_path} exists already"):
        main(["digits", str(tmp_path)])


def test_visualize_before_evaluation_is_one_sentence(data_opts):
    config = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN.yaml")
    with pytest.raises(SystemExit, match=r"error: the detections .* run train_net\.py"):
        main(["visualize", "--config-file", config, "--opts", *data_opts])


def test_compare_losses_continues_and_takes_the_best_learning_rate(data_opts, tmp_path, capsys):
    """With the results of all runs there, nothing is trained and the table is written."""
    experiment = _Experiment(COMPARE, data_opts, str(tmp_path), jobs=1)
    for i, row in enumerate(ROWS):
        for lr, seed, ap in ((0.1, 1, 10.0 + i), (0.2, 1, 5.0), (0.1, 2, 14.0 + i)):
            folder = tmp_path / experiment._folder((row, lr, seed))
            folder.mkdir()
            (folder / "result.json").write_text(json.dumps({"AP": ap, "AP50": 2 * ap}))
    arguments = ["--learning-rates", "0.2", "0.1", "--seeds", "1", "2", "--opts", *data_opts]
    main(["compare-losses", "--config-file", COMPARE, *arguments])
    assert "16 of 16 runs are there, 0 to go" in capsys.readouterr().out
    table = (tmp_path / "results.md").read_text().splitlines()
    assert len(table) == 2 + len(ROWS)
    assert table[2] == "| CE, prior 0.5 | 0.1 | 12.0 (10.0 to 14.0) | 24.0 | diverges |"
    assert (tmp_path / "results.png").stat().st_size > 0


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_the_comparison_see_the_imbalance(row):
    cfg = load_config(COMPARE)
    cfg.merge_from_list(ROWS[row][1])
    model = build_model(cfg).eval()
    with torch.no_grad():
        anchors, _, _ = model.predict(torch.zeros(1, 3, 160, 160))
    assert sum(len(boxes) for boxes in anchors) >= 5000


def test_focal_loss_figures(data_opts, tmp_path, capsys):
    config = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN.yaml")
    model = build_model(load_config(config))
    DetectionCheckpointer(model, save_dir=str(tmp_path)).save("random")
    opts = [*data_opts, "MODEL.WEIGHTS", str(tmp_path / "random.pth")]
    main(["focal-loss-figures", "--config-file", config, "--opts", *opts])
    assert "foreground and" in capsys.readouterr().out
    for name in ("focal_loss_curves.png", "focal_loss_shares.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
