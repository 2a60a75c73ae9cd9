"""Rows of config values in comparison: which trainings they need, and what is kept of them."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from retinanet_plugin.commands import one_trial, trials
from retinanet_plugin.commands.one_trial import changed_values, train
from retinanet_plugin.commands.trials import Row, Trial, Trials, needed
from retinanet_plugin.errors import UserError

SEEDS = [1, 2, 3]


def trained(rates, ap_of_rate):
    """All that a row needs, in the order in which it turns out, if its AP depends on the rate."""
    aps, order = {}, []
    while new := [x for x in needed(rates, SEEDS, aps) if x not in aps]:
        order += new
        aps.update({(lr, seed): ap_of_rate(lr) for lr, seed in new})
    return order


def test_a_grid_whose_best_is_inside_is_not_widened():
    order = trained([0.1, 0.2, 0.4], lambda lr: -abs(lr - 0.2))
    assert order == [(0.1, 1), (0.2, 1), (0.4, 1), (0.2, 2), (0.2, 3)]


def test_a_grid_is_widened_until_the_best_is_inside():
    up = trained([0.1, 0.2], lambda lr: -abs(lr - 0.7))
    assert up == [(0.1, 1), (0.2, 1), (0.4, 1), (0.8, 1), (1.6, 1), (0.8, 2), (0.8, 3)]
    down = trained([0.1, 0.2], lambda lr: -lr if lr > 0.03 else -1)
    assert [lr for lr, seed in down if seed == 1] == [0.1, 0.2, 0.05, 0.025]
    assert down[-1] == (0.05, 3)


def test_a_grid_is_not_widened_for_ever_and_one_rate_not_at_all():
    rates = [lr for lr, seed in trained([0.1, 0.2], lambda lr: lr) if seed == 1]
    assert len(rates) == 8
    assert trained([0.1], lambda lr: lr) == [(0.1, 1), (0.1, 2), (0.1, 3)]


@pytest.fixture
def rows(instant_cfg):
    other = instant_cfg.clone()
    other.MODEL.RETINANET.CLS_LOSS_NAME = "QualityFocalLoss"
    return {"plain": Row(instant_cfg, [0.1, 0.2, 0.4]), "QFL": Row(other, [0.1, 0.2, 0.4])}


def results(of, aps):
    """Lines as a file of results has them."""
    return [
        {**trial._asdict(), "scores": {"AP": ap}, "config": changed_values(of.config(trial))}
        for trial, ap in aps.items()
    ]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_results_are_read_on_any_machine_and_their_best_rate_counts(rows, tmp_path):
    path = tmp_path / "results.jsonl"
    found = Trials(rows, SEEDS, str(path))
    assert found.best("plain") is None
    write(path, results(found, {Trial("plain", 0.1, 1): 3.0}))
    assert Trials(rows, SEEDS, str(path)).best("plain") == (0.1, False, [{"AP": 3.0}])
    aps = {(0.1, 1): 3.0, (0.2, 1): 7.0, (0.4, 1): 5.0, (0.2, 3): 6.0}
    write(path, results(found, {Trial("plain", *key): ap for key, ap in aps.items()}))
    for row in rows.values():
        row.cfg.MODEL.DEVICE, row.cfg.OUTPUT_DIR = "cuda", "/elsewhere"
    found = Trials(rows, SEEDS, str(path))
    assert found.best("plain") == (0.2, True, [{"AP": 7.0}, {"AP": 6.0}])
    assert found.best("QFL") is None


def test_results_of_another_config_are_refused(rows, tmp_path):
    path = tmp_path / "results.jsonl"
    lines = results(Trials(rows, SEEDS, str(path)), {Trial("plain", 0.1, 1): 3.0})
    write(path, lines)
    rows["plain"].cfg.SOLVER.MAX_ITER += 1
    with pytest.raises(UserError, match=r"results.jsonl has Trial\(row='plain', .* another config"):
        Trials(rows, SEEDS, str(path))


@pytest.fixture
def in_threads(monkeypatch):
    """``in_threads(train)``: trainings are ``train`` and run in this process."""

    def patch(train):
        monkeypatch.setattr(trials, "ProcessPoolExecutor", lambda n, *_: ThreadPoolExecutor(n))
        monkeypatch.setattr(trials, "train", train)

    return patch


def test_trains_what_is_missing_and_keeps_the_rest(rows, tmp_path, capsys, in_threads):
    path = tmp_path / "results.jsonl"
    in_threads(lambda cfg, evaluate: {"AP": cfg.SEED - abs(cfg.SOLVER.BASE_LR - 0.2)})
    (other,) = results(Trials(rows, SEEDS, str(path)), {Trial("QFL", 0.1, 1): 3.0})
    write(path, [other])
    plain = {"plain": rows["plain"]}
    found = Trials(plain, SEEDS, str(path))
    found.run(jobs=2)
    assert found.best("plain") == (0.2, True, [{"AP": 1.0}, {"AP": 2.0}, {"AP": 3.0}])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["row"] for line in lines] == ["QFL", *5 * ["plain"]]
    assert lines[0] == other
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "0 trainings are there, at least 3 to go"
    assert said[-1].startswith("[5/5] plain, lr 0.2, seed ")  # two at a time, in any order
    assert said[-1].endswith(".0, about 0 minutes left")
    Trials(plain, SEEDS, str(path)).run()
    assert capsys.readouterr().out == "5 trainings are there, at least 0 to go\n"


def test_a_training_that_fails_ends_its_row_alone(rows, tmp_path, in_threads):
    def train(cfg, evaluate):
        if cfg.MODEL.RETINANET.CLS_LOSS_NAME == "QualityFocalLoss":
            raise UserError("no memory")
        return {"AP": 1.0}

    in_threads(train)
    found = Trials({"QFL": rows["QFL"], "plain": rows["plain"]}, [1], str(tmp_path / "x.jsonl"))
    with pytest.raises(UserError, match=r"1 trainings failed, such as .*'QFL'.*no memory"):
        found.run()
    assert found.best("QFL") is None
    assert found.best("plain") is not None


def test_trainings_end_with_the_time(rows, tmp_path, in_threads):
    in_threads(lambda *_: time.sleep(0.2) or {"AP": 1.0})
    found = Trials(rows, SEEDS, str(tmp_path / "x.jsonl"))
    found.run(seconds=0.1)
    assert not found.results


def test_a_training_from_config_to_scores(instant_cfg):
    scores = train(instant_cfg, lambda trainer: {"iterations": trainer.iter})
    assert scores["iterations"] == instant_cfg.SOLVER.MAX_ITER
    assert 0 <= scores["AP"] <= scores["AP50"] <= 100


def test_a_training_that_diverges_has_no_ap(instant_cfg, monkeypatch):
    class Diverging(one_trial.Trainer):
        def run_step(self):
            with torch.no_grad():
                next(self.model.parameters()).fill_(math.inf)
            super().run_step()

    monkeypatch.setattr(one_trial, "Trainer", Diverging)
    instant_cfg.MODEL.BACKBONE.FREEZE_AT = 0
    assert train(instant_cfg, None) == {"AP": 0.0, "AP50": 0.0, "diverged": True}
