"""Averages of the weights: what they are, and that a training evaluates, saves and resumes them."""

import json

import pytest
import torch
from detectron2.utils.env import seed_all_rng
from torch import nn

from retinanet_plugin.engine import Trainer, averaging
from retinanet_plugin.engine.averaging import WeightAverage, average_start, decay_of
from retinanet_plugin.errors import UserError


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm1d(1)


def averaged(name, values, ema_decay=0.5):
    """The average's scale after ``values`` were the model's, each once."""
    model = Small()
    average = WeightAverage(model, name, ema_decay)
    for value in values:
        nn.init.constant_(model.scale, value)
        average.update()
    return float(average.model.scale.detach())


def test_a_mean_of_weights():
    assert averaged("swa", [1, 2, 6, 11]) == pytest.approx(5)


def test_a_moving_average_by_hand():
    # Of the old average, 0, then 1/10, 2/11, ... are kept, and never more than the decay.
    right = 8.0
    for keep, value in [(1 / 10, 3), (2 / 11, 1), (0.2, 4), (0.2, 2)]:
        right = keep * right + (1 - keep) * value
    assert averaged("ema", [8, 3, 1, 4, 2], ema_decay=0.2) == pytest.approx(right)


def test_statistics_are_averaged_and_counters_are_the_last():
    model = Small()
    average = WeightAverage(model, "swa", 0.9)
    for mean in (1.0, 4.0):
        model.norm.running_mean.fill_(mean)
        model.norm.num_batches_tracked.add_(1)
        average.update()
    assert average.model.norm.running_mean == 2.5
    assert average.model.norm.num_batches_tracked == 2
    assert model.norm.running_mean == 4  # of the trained model nothing changes


def test_an_unknown_average_is_a_sentence():
    with pytest.raises(UserError, match=r"WEIGHT_AVERAGE.NAME is 'mean': choose one of ema, swa, "):
        decay_of("mean", 0.9)


@pytest.mark.parametrize(
    ("before", "now"),
    [(("ema", 0), ("swa", 0)), (("swa", 3), ("ema", 3)), (("swa", 3), ("swa", 7))],
)
def test_another_average_begins_anew(before, now, monkeypatch):
    """An EMA is no mean of as many weights, and early weights are none of the last ones of all."""
    said = []
    monkeypatch.setattr(averaging.logger, "warning", said.append)
    model = Small()
    earlier, average = (WeightAverage(model, name, 0.5, start) for name, start in (before, now))
    average.load_state_dict(earlier.state_dict())
    assert said == []  # there was none yet
    for value in (8.0, 3.0):
        nn.init.constant_(model.scale, value)
        earlier.update()
    average.load_state_dict(earlier.state_dict())
    for value in (1.0, 1.0):
        nn.init.constant_(model.scale, value)
        average.update()
    assert float(average.model.scale.detach()) == 1
    assert said == [
        f"SOLVER.WEIGHT_AVERAGE was {before[0]} from iteration {before[1]} and is {now[0]} from "
        f"iteration {now[1]}: the average begins anew, with the weights from here on"
    ]


@pytest.fixture
def cfg(instant_cfg):
    instant_cfg.SOLVER.MAX_ITER = 5
    instant_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.001  # so that there is something to evaluate
    return instant_cfg


class Recorder(WeightAverage):
    """Remembers all weights that it was given."""

    def update(self):
        self.seen = [*getattr(self, "seen", []), parameters(self._trained)]
        super().update()


def parameters(model):
    return torch.cat([x.detach().flatten().clone() for x in model.parameters()])


def train(cfg, resume=False):
    seed_all_rng(1)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def saved(folder, name):
    return torch.load(folder / f"{name}.pth", weights_only=True)


def test_a_training_averages_from_start_on_every_period(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr("retinanet_plugin.engine.trainer.WeightAverage", Recorder)
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.WEIGHT_AVERAGE.update(NAME="swa", START=0.2, PERIOD=2)
    trainer = train(cfg)
    average = trainer._average
    assert average.num_averaged == 2  # after the iterations 3 and 5
    assert torch.equal(average.seen[1], parameters(trainer.checkpointer.model))
    torch.testing.assert_close(parameters(average.model), sum(average.seen) / 2)
    assert trainer._test_average() == {}  # there is no test set
    weights = saved(tmp_path, "model_final_averaged")["model"]
    assert weights.keys() == saved(tmp_path, "model_final")["model"].keys()
    assert all(torch.equal(weights[k], x) for k, x in average.model.state_dict().items())


def test_it_changes_nothing_of_the_training(cfg, tmp_path):
    train(cfg)
    plain = saved(tmp_path, "model_final")
    assert not (tmp_path / "model_final_averaged.pth").exists()
    assert "WeightAverage" not in plain["trainer"].get("hooks", {})
    cfg.SOLVER.WEIGHT_AVERAGE.NAME = "ema"
    cfg.OUTPUT_DIR = str(tmp_path / "averaged")
    trainer = train(cfg)
    weights = saved(tmp_path / "averaged", "model_final")["model"]
    assert all(torch.equal(weights[k], x) for k, x in plain["model"].items())
    assert set(trainer._last_eval_results) == {"bbox", "averaged"}
    lines = (tmp_path / "averaged/metrics.json").read_text().splitlines()
    assert {"bbox/AP", "averaged/bbox/AP"} <= set(json.loads(lines[-1]))


def test_resumed_it_ends_as_if_it_had_not_been_stopped(cfg, tmp_path):
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.WEIGHT_AVERAGE.NAME = "ema"
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    train(cfg)
    whole = saved(tmp_path, "model_final_averaged")["model"]
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    (tmp_path / "model_final_averaged.pth").unlink()
    trainer = train(cfg, resume=True)
    assert trainer.start_iter == 3
    resumed = saved(tmp_path, "model_final_averaged")["model"]
    assert all(torch.equal(resumed[k], x) for k, x in whole.items())
    # Evaluated once more without an average, its weights are those of before.
    cfg.SOLVER.WEIGHT_AVERAGE.NAME = ""
    train(cfg, resume=True)
    assert (tmp_path / "model_final_averaged.pth").is_file()
    # They are not when it went on.
    cfg.SOLVER.MAX_ITER = 6
    train(cfg, resume=True)
    assert not (tmp_path / "model_final_averaged.pth").exists()
    assert (tmp_path / "earlier-1/model_final_averaged.pth").is_file()


def test_the_best_weights_may_be_the_average(cfg, tmp_path, monkeypatch):
    results = iter([{"bbox": {"AP": 7.0}}, {"bbox": {"AP": 5.0}}])  # the average's come first
    monkeypatch.setattr(Trainer, "test", lambda *_: next(results))
    cfg.SOLVER.WEIGHT_AVERAGE.NAME = "ema"
    cfg.TEST.VAL_LOSS, cfg.TEST.NUM_PICTURES = False, 0
    trainer = train(cfg)
    best = saved(tmp_path, "model_best")
    assert best["best_metric"] == 7.0
    assert all(
        torch.equal(best["model"][k], x) for k, x in trainer._average.model.state_dict().items()
    )


def test_a_training_that_goes_on_for_longer_begins_its_average_later(cfg):
    """Weights of before that start are none of the last ones of all; nor are they evaluated."""
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.WEIGHT_AVERAGE.update(NAME="swa", START=0.6)
    assert train(cfg)._average.num_averaged == 2  # after the iterations 4 and 5
    cfg.SOLVER.MAX_ITER = 10
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer._average.num_averaged == 0
    trainer.train()
    assert trainer._average.num_averaged == 4  # after 7 to 10


@pytest.mark.parametrize(("iterations", "share", "start"), [(1, 0.7, 0), (100, 0.999, 99)])
def test_an_average_has_the_last_weights_at_least(cfg, iterations, share, start):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WEIGHT_AVERAGE.START = iterations, share
    assert average_start(cfg) == start
