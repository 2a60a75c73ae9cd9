"""What the page of a plan shows: facts of the data, decisions with reasons, anchors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure


class Decision(NamedTuple):
    """A value that was chosen, and why."""

    what: str  # a config key, or words
    value: str
    reason: str


class AnchorChoice(NamedTuple):
    """Anchors, and the share of the boxes that they reach: 0 to 1, NaN where there is no box."""

    sizes: dict[str, list[float]]  # of each level, such as "p3": sides of square anchors, pixels
    aspect_ratios: list[float]  # height divided by width
    reached_by_class: dict[str, float]
    reached_by_size: dict[str, float]  # such as {"small (under 32 px)": 0.31}, in order
    reached: float  # of all boxes


@dataclass
class Plan:
    """All that a plan page says. Names may be any text: the page escapes them."""

    title: str
    facts: list[tuple[str, str]]  # name and value, such as ("images", "1,234")
    decisions: list[Decision]
    class_counts: dict[str, int]
    box_sizes: dict[str, np.ndarray]  # of each class (M, 2): width and height, pixels of the files
    resized_box_sizes: dict[str, np.ndarray]  # the same as the model sees them
    anchors_before: AnchorChoice
    anchors_after: AnchorChoice
    remarks: Sequence[str] = ()  # warnings and notes, a sentence each
    sheet: Figure | None = None  # of ``draw_contact_sheet``
    commands: list[tuple[str, str]] = field(default_factory=list)  # what it does, shell command
