"""From facts to a plan: what is decided once data and machine are known."""

from dataclasses import dataclass

from ..dataset_facts import DatasetFacts
from .anchors import AnchorPlan, plan_anchors
from .choice import Choice, Machine
from .crops import choose_views
from .flips import choose_flip
from .image_size import ImageSize, choose_image_size
from .network import choose_network, choose_precision, learning_rate_of_8
from .schedule import EVAL_SHARE, START_SECONDS
from .targets import choose_targets

# The share of the boxes: with fewer, most of what is there is not learned.
_LEAST_REACHED = 0.5


@dataclass(frozen=True)
class Wishes:
    """What the user said, or did not."""

    budget: float  # seconds for training
    flip: bool = True
    weights: str = ""


@dataclass(frozen=True)
class DataPlan:
    """All but the schedule, which wants a step of this plan to be measured."""

    size: ImageSize
    anchors: AnchorPlan
    choices: list[Choice]
    learning_rate: float  # for batches of eight images

    @property
    def warnings(self) -> list[str]:
        """A sentence on what will not be learned, if it is much."""
        reached = self.anchors.fit.after.coverage
        if self.size.warnings or reached >= _LEAST_REACHED:
            return self.size.warnings
        return [
            f"anchors reach {reached:.1%} of the objects, which are too thin where the shorter "
            f"edge of images has {self.size.short_edge}: {self.size.remedy}"
        ]


def plan_for_data(facts: DatasetFacts, machine: Machine, wishes: Wishes) -> DataPlan:
    """
    Args:
        facts: of the training set; all sizes of images are known, and there is a box.
        machine: measured with a network of :func:`choose_network`.
        wishes: of the user.
    """
    seconds = (wishes.budget - START_SECONDS) * (1 - EVAL_SHARE)
    size = choose_image_size(facts, machine, seconds)
    anchors = plan_anchors(facts, size)
    choices = [
        *choose_network(machine.device, wishes.weights),
        *choose_precision(machine),
        Choice("MODEL.RETINANET.NUM_CLASSES", len(facts.class_names), "the classes of the data"),
        *anchors.choices(),
        *choose_targets(wishes.weights, size.small_side),
        *size.choices(),
        *choose_views(facts, size.short_edge),
        choose_flip(facts.class_names, wishes.flip),
    ]
    return DataPlan(size, anchors, choices, learning_rate_of_8(wishes.weights))
