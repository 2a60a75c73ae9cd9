"""What a plan is made of: values of config keys, each with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Choice(NamedTuple):
    """A value for a config key, and why: a phrase that fits in a comment."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Machine:
    """What trains, as it was measured; see :mod:`retinanet_plugin.engine.step_cost`."""

    device: str  # "cpu" or "cuda"
    seconds_per_megapixel: float  # of training, of the resized images, for the planned network
    loading_seconds: float = 0.0  # for an image, whatever it is resized to
    bfloat16_gain: float = 1.0  # how many times faster steps are with bfloat16


@dataclass(frozen=True)
class StepCost:
    """What was measured with the planned network, images and batch."""

    seconds: float  # a training step, with loading its images
    loading_seconds: float  # of these, those in which loading kept the step waiting
    eval_seconds: float  # for an image of validation, detections and losses


def with_reason(choices: Sequence[Choice], reason: str) -> list[Choice]:
    """Choices that have one reason together: the first of them tells it."""
    first, *others = choices
    return [first._replace(reason=reason), *others]


def options(choices: Sequence[Choice]) -> list[Any]:
    """``[KEY, VALUE, KEY, VALUE, ...]``, for ``CfgNode.merge_from_list``."""
    return [item for choice in choices for item in (choice.key, choice.value)]
