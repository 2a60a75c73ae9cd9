"""Of several processes, the one whose loss is not finite is the one that fails."""

import math
from typing import Any

from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch.distributed import distributed_c10d

_CLAIMED = "a loss that is not finite"


class OwnLosses(SimpleTrainer):
    """A step of Detectron2's in which each process looks at its losses before they are averaged.

    Detectron2's first process looks at the mean alone, which does not say whose images they are of.
    """

    def _write_metrics(self, losses: Any, *args: Any, **kwargs: Any) -> None:
        """
        Raises:
            FloatingPointError: a loss of this process is not finite, and this is the first process
                that finds one. Others wait for it, and so for its end.
        """
        if (
            comm.get_world_size() > 1
            and not math.isfinite(sum(float(x.detach()) for x in losses.values()))
            and distributed_c10d._get_default_store().add(_CLAIMED, 1) == 1
        ):
            raise FloatingPointError("a loss of this process is infinite or NaN")
        super()._write_metrics(losses, *args, **kwargs)
