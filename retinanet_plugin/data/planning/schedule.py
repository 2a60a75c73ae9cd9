"""How long to train, with which batch and learning rate, and how often to evaluate."""

from dataclasses import dataclass

from ..findings import counted
from .choice import Choice, StepCost
from .durations import in_words

# Of less, next to nothing is left once the training has started and was evaluated.
LEAST_BUDGET = 60.0
# Of what train_net.py does before its first step and after its last: imports, checks, checkpoints.
START_SECONDS = 15.0
# What a step takes beside what was measured: hooks, the log.
_OVERHEAD = 1.03
# Of an evaluation beside the images themselves: AP, pictures, a checkpoint.
EVALUATION_SECONDS = 4.0
# Evaluations may take this share of the time.
EVAL_SHARE = 0.1
_MOST_EVALUATIONS = 5
_LEAST_CHECKPOINTS = 5
_MOST_EPOCHS, _LEAST_ITERATIONS = 300, 1000
MOST_EPOCHS_OF_FEW = 500  # with more, the doctor says that images are seen absurdly often
_FEW_EPOCHS, _FEW_ITERATIONS = 1, 100
USUAL_BATCH = 8
_WARM_UP = 100


@dataclass(frozen=True)
class Schedule:
    """Iterations, and what they come to."""

    iterations: int
    batch: int
    learning_rate: float
    num_evaluations: int
    seconds: float  # expected, of the whole training
    epochs: float
    is_whole: bool  # the time was not what limits it

    def choices(self, budget: float) -> list[Choice]:
        enough = "for which {} are more than enough" if self.is_whole else "what {} allow"
        length = f"{self._times} every image, {enough.format(in_words(budget))}"
        period = max(1, -(-self.iterations // self.num_evaluations))
        return [
            Choice("SOLVER.IMS_PER_BATCH", self.batch, ""),
            Choice(
                "SOLVER.BASE_LR",
                self.learning_rate,
                f"for {counted(self.batch, 'image', 'images')} a step",
            ),
            Choice("SOLVER.MAX_ITER", self.iterations, length),
            Choice(
                "SOLVER.WARMUP_ITERS",
                min(_WARM_UP, self.iterations // 5),
                "over which the learning rate rises",
            ),
            Choice(
                "TEST.EVAL_PERIOD",
                period,
                f"{counted(self.num_evaluations, 'evaluation', 'evaluations')}; the best model is "
                "kept as model_best.pth",
            ),
            Choice(
                "SOLVER.CHECKPOINT_PERIOD",
                min(period, max(1, self.iterations // _LEAST_CHECKPOINTS)),
                "a training that is killed goes on from the last one with --resume",
            ),
        ]

    def warnings(self, budget: float) -> list[str]:
        """A sentence if next to nothing can be learned."""
        if self.is_whole or (self.epochs >= _FEW_EPOCHS and self.iterations >= _FEW_ITERATIONS):
            return []
        return [
            f"{in_words(budget)} are {self.iterations:,} iterations here, {self._times} every "
            "image, which is too few to learn much: give it more time with --budget"
        ]

    @property
    def _times(self) -> str:
        """``"70 times"``."""
        return f"{self.epochs:,.0f} times" if self.epochs >= 10 else f"{self.epochs:.2g} times"


def usual_batch(num_images: int) -> int:
    """Images of a step, of which none is there twice.

    Args:
        num_images: that are trained on.
    """
    return min(USUAL_BATCH, num_images)


def plan_schedule(
    num_images: int, num_val: int, batch: int, lr_of_8: float, cost: StepCost, budget: float
) -> Schedule:
    """As many iterations as the time allows, less what evaluations take.

    Args:
        num_images: that are trained on.
        num_val: that are evaluated on.
        batch: images of a step.
        lr_of_8: the learning rate for batches of eight, to which that of others is proportional.
        cost: as measured.
        budget: seconds for all of ``train_net.py``.
    """
    evaluation = EVALUATION_SECONDS + cost.eval_seconds * num_val
    affordable = int(budget * EVAL_SHARE / evaluation)
    num_evaluations = max(1, min(affordable, _MOST_EVALUATIONS))
    step = cost.seconds * _OVERHEAD
    left = budget - START_SECONDS - num_evaluations * evaluation
    most, most_of_few = (n * num_images // batch for n in (_MOST_EPOCHS, MOST_EPOCHS_OF_FEW))
    wanted = max(most, min(_LEAST_ITERATIONS, most_of_few))
    iterations = max(1, min(int(left / step), wanted))
    num_evaluations = min(num_evaluations, iterations)
    return Schedule(
        iterations,
        batch,
        round(lr_of_8 * batch / USUAL_BATCH, 10),  # 0.075, not 0.07500000000000001
        num_evaluations,
        START_SECONDS + iterations * step + num_evaluations * evaluation,
        iterations * batch / num_images,
        is_whole=iterations == wanted,
    )
