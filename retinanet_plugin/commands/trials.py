"""Small trainings in comparison: every row of config values at the learning rate that suits it."""

import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import torch
from detectron2.config import CfgNode

from ..engine import Trainer
from ..errors import UserError
from ..whole_files import write_whole_file
from .one_trial import Scores, changed_values, train

# Most learning rates of a row.
_MOST_RATES = 8


class Trial(NamedTuple):
    """One training."""

    row: str
    lr: float
    seed: int


class Row(NamedTuple):
    """Something to be compared, and the learning rates that are tried first, ascending."""

    cfg: CfgNode
    rates: Sequence[float]


def needed(rates: Sequence[float], seeds: Sequence[int], aps: dict[tuple[float, int], float]) -> (
    list[tuple[float, int]]
):  # fmt: skip
    """Learning rates and seeds of the trainings that a row is known to need, in their order.

    The first seed tries all ``rates`` and then, by the same factor, further ones at that end at
    which the best one is, until it is at none. The other seeds take the best one.

    Args:
        rates: one, or several in ascending order.
        seeds: at least one.
        aps: what has been found, by learning rate and seed.
    """
    first, *others = seeds
    rates = list(rates)
    while True:
        tries = [(lr, first) for lr in rates]
        if not all(x in aps for x in tries):
            return tries
        best = best_rate(rates, first, aps)
        if not is_at_an_end(best, rates) or len(rates) >= _MOST_RATES:
            return tries + [(best, seed) for seed in others]
        factor = rates[1] / rates[0]
        if best == rates[-1]:
            rates.append(_rounded(best * factor))
        else:
            rates.insert(0, _rounded(best / factor))


def best_rate(rates: Sequence[float], seed: int, aps: dict[tuple[float, int], float]) -> float:
    return max(rates, key=lambda lr: aps[lr, seed])


def is_at_an_end(lr: float, rates: Sequence[float]) -> bool:
    """Whether a still larger or smaller rate may be better than ``lr``."""
    return len(rates) > 1 and lr in (rates[0], rates[-1])


class Trials:
    """Trains each row, in the order of their value, several at a time, and keeps what was found.

    A call that was stopped goes on where it was: each result is a line of JSON in ``path``.
    """

    def __init__(self, rows: dict[str, Row], seeds: Sequence[int], path: str) -> None:
        """
        Args:
            rows: by name.
            seeds: the first one chooses the learning rate.
            path: of the results.

        Raises:
            UserError: a result in it is of another config.
        """
        self.rows, self.seeds, self.path = rows, seeds, path
        self._others: list[str] = []  # lines of rows that are not asked for
        self.results = self._read()
        self.failed: dict[Trial, str] = {}

    def run(
        self,
        jobs: int = 1,
        seconds: float = math.inf,
        evaluate: Callable[[Trainer], Scores] | None = None,
    ) -> None:
        """Train what is missing.

        Args:
            jobs: trainings at a time, each in a process of its own.
            seconds: after which it ends; trainings that are not complete are lost.
            evaluate: importable; what it returns is added to the scores of a training.

        Raises:
            UserError: a process ended, or a training failed; the others were completed.
        """
        done, expected = len(self.results), len(self._needed())
        print(f"{done} trainings are there, at least {expected - done} to go", flush=True)
        start = time.monotonic()
        new = self._train_missing(jobs, start + seconds, evaluate)
        for num_new, (trial, scores) in enumerate(new, 1):
            passed = time.monotonic() - start
            left = passed / num_new * (len(self._needed()) - len(self.results))
            found = self.failed.get(trial) or f"AP {scores['AP']:.1f}"
            print(
                f"[{len(self.results)}/{len(self._needed())}] {trial.row}, lr {trial.lr:g}, seed "
                f"{trial.seed}: {found}, about {min(left, seconds - passed) / 60:.0f} minutes left",
                flush=True,
            )
        if self.failed:
            trial, message = next(iter(self.failed.items()))
            raise UserError(f"{len(self.failed)} trainings failed, such as {trial}: {message}")

    def best(self, row: str) -> tuple[float, bool, list[Scores]] | None:
        """The best learning rate of a row, whether it is inside of what was tried, and the scores
        of its seeds; None before the first seed has any."""
        first, aps = self.seeds[0], self._aps(row)
        rates = sorted(lr for lr, seed in aps if seed == first)
        if not rates:
            return None
        lr = best_rate(rates, first, aps)
        is_inside = len(self.rows[row].rates) == 1 or rates[0] < lr < rates[-1]
        scores = [self.results[Trial(row, lr, seed)] for seed in self.seeds if (lr, seed) in aps]
        return lr, is_inside, scores

    def config(self, trial: Trial) -> CfgNode:
        cfg = self.rows[trial.row].cfg.clone()
        cfg.SEED, cfg.SOLVER.BASE_LR = trial.seed, trial.lr
        # The processes of a pool have enough to do, and no children.
        cfg.DATALOADER.NUM_WORKERS = 0
        return cfg

    def _train_missing(
        self, jobs: int, deadline: float, evaluate: Callable[[Trainer], Scores] | None
    ) -> Iterator[tuple[Trial, Scores]]:
        threads = max(1, torch.get_num_threads() // jobs)
        running: dict[Future[Scores], Trial] = {}
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (threads,)) as pool:
            try:
                while True:
                    for trial in self._missing(running.values())[: jobs - len(running)]:
                        running[pool.submit(train, self.config(trial), evaluate)] = trial
                    left = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
                    complete, _ = wait(running, left, FIRST_COMPLETED)
                    if not complete:
                        return
                    for future in complete:
                        trial = running.pop(future)
                        yield trial, self._take(trial, future)
            finally:
                if running:  # the time is over, or the call is interrupted
                    for process in multiprocessing.active_children():
                        process.terminate()

    def _missing(self, running: Collection[Trial]) -> list[Trial]:
        known = {*self.results, *self.failed, *running}
        return [trial for trial in self._needed() if trial not in known]

    def _take(self, trial: Trial, future: Future[Scores]) -> Scores:
        try:
            scores = future.result()
        except BrokenProcessPool as error:
            raise UserError(
                f"a process that trained {trial} ended, perhaps for lack of memory: run fewer at a "
                "time; what was complete is kept"
            ) from error
        except Exception as error:
            self.failed[trial] = f"{type(error).__name__}: {error}"
            return {}
        self.results[trial] = scores
        self._write()
        return scores

    def _needed(self) -> list[Trial]:
        """Of all rows; of one in which a training failed, no more than there is."""
        broken = {trial.row for trial in self.failed}
        return [
            Trial(name, lr, seed)
            for name, row in self.rows.items()
            for lr, seed in needed(row.rates, self.seeds, self._aps(name))
            if name not in broken or (name, lr, seed) in self.results
        ]

    def _aps(self, row: str) -> dict[tuple[float, int], float]:
        return {(x.lr, x.seed): scores["AP"] for x, scores in self.results.items() if x.row == row}

    def _read(self) -> dict[Trial, Scores]:
        results: dict[Trial, Scores] = {}
        if not os.path.exists(self.path):
            return results
        with open(self.path) as file:
            lines = file.read().splitlines()
        for text in lines:
            line = json.loads(text)
            trial = Trial(line["row"], line["lr"], line["seed"])
            if trial.row not in self.rows:
                self._others.append(text)
                continue
            if line["config"] != changed_values(self.config(trial)):
                raise UserError(
                    f"{self.path} has {trial} of another config: delete it, or choose another "
                    "folder for the results"
                )
            results[trial] = line["scores"]
        return results

    def _write(self) -> None:
        lines = self._others + [
            json.dumps({**x._asdict(), "scores": s, "config": changed_values(self.config(x))})
            for x, s in self.results.items()
        ]
        write_whole_file(self.path, lambda f: f.write(("\n".join(lines) + "\n").encode()))


def _rounded(lr: float) -> float:
    return float(f"{lr:.3g}")
