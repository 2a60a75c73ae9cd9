"""What summed losses are divided by: the foreground anchors of a batch, wherever its parts are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, distributed, nn

from ..eager import is_recomputed, is_transformed
from .reduction import LossSum

# Foreground anchors of a batch before any was seen, as in Detectron2's RetinaNet.
_FIRST_AVERAGE = 100.0
_NEW_SHARE = 0.1  # of a batch in the moving average, as there


class NormalizedLosses(nn.Module):
    """A model whose losses are divided by a moving average of the foreground anchors of a batch.

    The batch is that of all processes that train together, and of all forwards in
    :meth:`accumulating`: gradients are those of one process that computes it at once. Since
    DistributedDataParallel averages the gradients of P processes, each divides by a P-th of it.

    A forward that ``torch.utils.checkpoint`` repeats divides by the average as it is by then. That
    is what it divided by if its backward comes before the next forward, as in trainers; of two
    forwards with one backward, the gradients of the first are off by what the second changed.
    """

    loss_normalizer: Tensor

    def __init__(self, sync_loss_normalizer: bool = True) -> None:
        """
        Args:
            sync_loss_normalizer: False: each process has an average of its own, as in Detectron2.
        """
        super().__init__()
        self.sync_loss_normalizer = sync_loss_normalizer
        self._parts: list[Tensor] | None = None  # numbers of foreground anchors, in accumulating
        # Saved, so that a resumed run scales its losses as the interrupted one did (of several
        # processes with averages of their own, all go on from the first one's).
        self.register_buffer("loss_normalizer", torch.tensor(_FIRST_AVERAGE))

    def normalized(self, sums: dict[str, LossSum], num_foreground: Tensor) -> dict[str, Tensor]:
        """Losses from their sums over the batch of this process.

        Args:
            sums: those with a weight of their own are divided by its sum over the batch.
            num_foreground: (); in training it goes into the average, except within transforms of
                ``torch.func``, which forbid it.

        Raises:
            ValueError: a loss has a weight, in :meth:`accumulating`, where its sum over the batch
                is not known yet.
        """
        average = self._average_with(num_foreground)
        losses = {}
        for name, (value, weight) in sums.items():
            if weight is not None and self._parts is not None:
                raise ValueError(f"{name} is divided by a weight of the whole batch, not of parts")
            # A sum of weights below 1 counts as 1, as in GFL's code.
            total = average if weight is None else self._of_batch(weight).clamp(min=1)
            losses[name] = value / (total / self._num_shares() if self._num_shares() > 1 else total)
        return losses

    @contextmanager
    def accumulating(self) -> Iterator[Callable[[], Tensor]]:
        """Forwards in here are of parts of one batch, and divide by the average as it was.

        Yields:
            a function to call after the last of them: it takes the batch into the average, and
            returns the factor, (), by which all losses and gradients become those of the batch.
        """
        self._parts = []
        try:
            yield self._complete_batch
        finally:
            self._parts = None

    def _complete_batch(self) -> Tensor:
        assert self._parts
        before, batch = self.loss_normalizer.clone(), torch.stack(self._parts).sum()
        self._parts = None
        return before / self._average_with(batch)

    def _average_with(self, num_foreground: Tensor) -> Tensor:
        if not self.training or is_recomputed():
            return self.loss_normalizer.clone()
        if self._parts is not None:
            self._parts.append(num_foreground)
            return self.loss_normalizer.clone()
        batch = self._of_batch(num_foreground).clamp(min=1)  # none count as one
        average = self.loss_normalizer.lerp(batch.to(self.loss_normalizer), _NEW_SHARE)
        if not is_transformed():
            # A copy of it, because autograd keeps the average while a later forward goes on.
            self.loss_normalizer.copy_(average)
        return average

    def _num_shares(self) -> int:
        return comm.get_world_size() if self.sync_loss_normalizer else 1

    def _of_batch(self, number: Tensor) -> Tensor:
        """The sum of a number () over the processes that share the batch, without gradient."""
        if self._num_shares() == 1:
            return number
        total = number.detach().to(self.loss_normalizer, copy=True)
        distributed.all_reduce(total)
        return total

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Checkpoints of Detectron2's RetinaNet lack the moving average: it starts as stock's does.
        state_dict.setdefault(prefix + "loss_normalizer", torch.tensor(_FIRST_AVERAGE))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
