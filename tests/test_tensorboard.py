"""What TensorBoard shows of a training, read back from its event file; the training is the same."""

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.io import decode_image

from retinanet_plugin.engine import Trainer, tensorboard
from retinanet_plugin.engine.tensorboard import ValidationPictures


@pytest.fixture
def cfg(instant_cfg):
    """Two iterations, an evaluation after each, and detections to draw."""
    instant_cfg.TEST.EVAL_PERIOD = 1
    instant_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.001
    return instant_cfg


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(tensorboard.logger, "warning", said.append)
    return said


def train(cfg, folder):
    """Weights and buffers after a training, and the random states that it leaves."""
    cfg.OUTPUT_DIR = str(folder)
    torch.manual_seed(0)
    np.random.seed(0)
    trainer = Trainer(cfg)
    trainer.train()
    assert trainer.model.training
    return trainer.model.state_dict(), torch.get_rng_state(), np.random.get_state()[1]


def read_events(folder):
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def test_event_file(cfg, tmp_path, monkeypatch):
    """Scalars of losses, rate, foreground anchors and AP; a picture for each evaluation."""
    drawn = []
    draw_pairs = tensorboard.draw_pairs

    def draw(images, *args):
        drawn.append([image["file_name"] for image in images])
        return draw_pairs(images, *args)

    monkeypatch.setattr(tensorboard, "draw_pairs", draw)
    cfg.TEST.NUM_PICTURES = 2
    train(cfg, tmp_path)
    events = read_events(tmp_path)
    names = {"total_loss", "loss_cls", "loss_box_reg", "lr", "num_pos_anchors", "bbox/AP"}
    names |= {"val_total_loss", "num_detections", "top_score", "share_reached_by_anchors"}
    assert names <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("bbox/AP")] == [0, 2]
    assert events.Scalars("num_pos_anchors")[0].value > 0

    (tag,) = events.Tags()["images"]
    assert tag == f"validation/{cfg.DATASETS.TEST[0]}"
    pictures = events.Images(tag)
    assert [picture.step for picture in pictures] == [0, 2]
    for picture in pictures:
        encoded = torch.frombuffer(bytearray(picture.encoded_image_string), dtype=torch.uint8)
        decoded = decode_image(encoded)
        assert decoded.shape == (3, picture.height, picture.width)
        assert picture.width > 1300  # two pairs side by side
        assert len(decoded.unique()) > 100
    # The same ones each time, the first and the last of four.
    assert [name.rsplit("/", 1)[1] for name in drawn[0]] == ["00001.jpg", "00004.jpg"]
    assert drawn[0] == drawn[1]


def test_the_training_is_the_same_to_the_bit(cfg, tmp_path):
    """Weights, moving average and the states of all random generators."""
    cfg.TEST.VAL_LOSS = False
    results = []
    for number in (0, 3):
        cfg.TEST.NUM_PICTURES = number
        results.append(train(cfg, tmp_path / str(number)))
        assert bool(read_events(tmp_path / str(number)).Tags()["images"]) == bool(number)
    (without, torch_state, numpy_state), (with_pictures, torch_after, numpy_after) = results
    assert without.keys() == with_pictures.keys()
    assert all(torch.equal(without[name], with_pictures[name]) for name in without)
    assert torch.equal(torch_state, torch_after)
    assert np.array_equal(numpy_state, numpy_after)


def test_what_fails_is_said_once_and_ends_nothing(cfg, tmp_path, monkeypatch, warnings):
    calls = []

    def fail(*args):
        calls.append(args)
        raise RuntimeError("no font was found")

    monkeypatch.setattr(tensorboard, "draw_pairs", fail)
    train(cfg, tmp_path)
    assert (tmp_path / "model_final.pth").exists()
    assert len(calls) == 1
    (warning,) = warnings
    assert warning.startswith(f"detections on {cfg.DATASETS.TEST[0]} cannot be drawn")
    assert "RuntimeError: no font was found" in warning
    assert not read_events(tmp_path).Tags()["images"]


class Finding(torch.nn.Module):
    """A model of which only the mode counts."""

    def __init__(self):
        super().__init__()
        self.modes = []

    def forward(self, inputs):
        self.modes.append(self.training)
        raise KeyError("forward")


@pytest.mark.parametrize("was_training", [True, False])
def test_the_mode_of_the_model_is_as_it_was(cfg, warnings, was_training):
    model = Finding().train(was_training)
    with EventStorage():
        ValidationPictures(cfg).draw(model)
    assert model.modes == [False]
    assert model.training is was_training
    assert len(warnings) == 1


def test_off_where_there_is_nothing_to_do(cfg, monkeypatch, warnings):
    """By the key, without test sets, and in processes that are not the first."""
    model = Finding()
    monkeypatch.setattr(tensorboard.comm, "is_main_process", lambda: False)
    ValidationPictures(cfg).draw(model)
    monkeypatch.undo()
    cfg.TEST.NUM_PICTURES = 0
    ValidationPictures(cfg).draw(model)
    cfg.TEST.NUM_PICTURES, cfg.DATASETS.TEST = 8, ()
    ValidationPictures(cfg).draw(model)
    assert not model.modes
    assert not warnings
