"""Averages of the weights over a training, which often detect better than the last weights."""

import copy
import logging
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..errors import UserError

logger = logging.getLogger("detectron2.trainer")

_Decay = Callable[[int], float]


def decay_of(name: str, ema_decay: float) -> _Decay:
    """What share of an average is kept when weights are added to it, by how many it is of.

    Args:
        name: "ema": an exponential moving average. The share rises to ``ema_decay`` as in
            TensorFlow's ``ExponentialMovingAverage(num_updates=...)``, so that the first weights,
            which are hardly trained, are soon forgotten. "swa": the mean of all (Izmailov et al.,
            *Averaging Weights Leads to Wider Optima and Better Generalization*,
            arXiv 1803.05407, section 3.2).

    Raises:
        UserError: ``name`` is another one.
    """
    decays: dict[str, _Decay] = {
        "ema": lambda n: min(ema_decay, n / (n + 9)),
        "swa": lambda n: n / (n + 1),
    }
    if name not in decays:
        raise UserError(
            f"SOLVER.WEIGHT_AVERAGE.NAME is {name!r}: choose one of {', '.join(decays)}, or '' for "
            "none"
        )
    return decays[name]


class WeightAverage(HookBase):
    """Averages parameters and buffers, such as the statistics of batch norms, after steps.

    Its state is in each checkpoint. All processes of a training have the same weights, and so the
    same average.

    Attributes:
        model: a copy of the trained model, with the average once ``num_averaged`` is above 0.
        num_averaged: how many weights it is an average of.
    """

    def __init__(
        self, model: nn.Module, name: str, ema_decay: float, start: int = 0, period: int = 1
    ) -> None:
        """
        Args:
            model: the bare model that is trained.
            name, ema_decay: of :func:`decay_of`.
            start: iterations before the first weights that count.
            period: iterations from weights that count to the next.

        Raises:
            UserError: see :func:`decay_of`.
        """
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.num_averaged = 0
        self._name, self._decay = name, decay_of(name, ema_decay)
        self._trained, self._start, self._period = model, start, period

    @classmethod
    def of_config(cls, cfg: CfgNode, model: nn.Module) -> "WeightAverage | None":
        """That which ``SOLVER.WEIGHT_AVERAGE`` asks for, if any.

        Raises:
            UserError: see :func:`decay_of`.
        """
        keys = cfg.SOLVER.WEIGHT_AVERAGE
        if not keys.NAME:
            return None
        return cls(model, keys.NAME, keys.EMA_DECAY, average_start(cfg), keys.PERIOD)

    def after_step(self) -> None:
        done = self.trainer.iter + 1 - self._start
        if done > 0 and done % self._period == 0:
            self.update()

    def update(self) -> None:
        """Add the present weights to the average."""
        # AveragedModel of torch computes the same, but waits for the GPU to read a counter.
        decay = self._decay(self.num_averaged)
        averaged, present = _tensors(self.model), _tensors(self._trained)
        floating = [i for i, x in enumerate(averaged) if x.is_floating_point()]
        get_ema_multi_avg_fn(decay)(
            [averaged[i] for i in floating], [present[i] for i in floating], self.num_averaged
        )
        for mine, theirs in zip(averaged, present):
            if not mine.is_floating_point():  # counters of batch norms
                mine.copy_(theirs)
        self.num_averaged += 1

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {
            "name": self._name,
            "start": self._start,
            "model": self.model.state_dict(),
            "num_averaged": self.num_averaged,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with an average; one of the other kind or start is not taken for a beginning of
        this."""
        # Older checkpoints lack them.
        before = state_dict.get("name", self._name), state_dict.get("start", self._start)
        if before == (self._name, self._start):
            self.model.load_state_dict(state_dict["model"])
            self.num_averaged = state_dict["num_averaged"]
        elif state_dict["num_averaged"]:
            logger.warning(
                f"SOLVER.WEIGHT_AVERAGE was {_described(*before)} and is "
                f"{_described(self._name, self._start)}: the average begins anew, with the weights "
                "from here on"
            )


def average_start(cfg: CfgNode) -> int:
    """Iterations before the first weights that count; one at least is left."""
    solver = cfg.SOLVER
    return min(round(solver.WEIGHT_AVERAGE.START * solver.MAX_ITER), solver.MAX_ITER - 1)


def _described(name: str, start: int) -> str:
    return f"{name} from iteration {start}"


def _tensors(model: nn.Module) -> list[Tensor]:
    return [x.detach() for x in (*model.parameters(), *model.buffers())]
