"""The page of a plan that was made for a data set."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from ..data.anchor_fit import Anchors
from ..data.dataset_facts import DatasetFacts
from ..data.planning.anchors import AnchorPlan
from ..data.planning.choice import Choice, Machine
from ..data.planning.plan import DataPlan
from .plan import AnchorChoice, Decision, Plan

_BORDERS = (16, 32, 64, 128)


def page_of(
    plan: DataPlan,
    facts: DatasetFacts,
    choices: Sequence[Choice],
    machine: Machine,
    times: Sequence[tuple[str, str]],
    remarks: Sequence[str],
    train_command: str,
    sheet: Figure,
) -> Plan:
    """What :func:`retinanet_plugin.report.plan_page.write_plan_page` shows.

    Args:
        plan: for the data.
        facts: of the training set.
        choices: all that were made.
        machine: as it was measured.
        times: further facts: of validation, and of how long it will take.
        remarks: warnings and notes.
        train_command: what a shell is to be given.
        sheet: images as the training sees them.
    """
    widths, heights = np.median(facts.sizes, axis=0)
    names = facts.class_names
    sides = facts.box_sizes[facts.has_area & ~facts.is_crowd]
    classes = facts.classes[facts.has_area & ~facts.is_crowd]
    return Plan(
        title=f"Plan for {facts.name.removesuffix('_train')}",
        facts=[
            ("images to train on", f"{facts.num_images:,}"),
            ("boxes in them", f"{facts.num_boxes:,}"),
            ("median image", f"{widths:.0f}x{heights:.0f} pixels"),
            ("device", machine.device),
            ("training of a megapixel", f"{machine.seconds_per_megapixel:.3g} s"),
            *times,
        ],
        decisions=[Decision(x.key, str(x.value), x.reason) for x in choices if x.reason],
        class_counts=dict(zip(names, facts.class_counts)),
        box_sizes={name: sides[classes == k] for k, name in enumerate(names)},
        resized_box_sizes={
            name: plan.anchors.sides[plan.anchors.classes == k] for k, name in enumerate(names)
        },
        anchors_before=_choice(plan.anchors, plan.anchors.fit.before, names),
        anchors_after=_choice(plan.anchors, plan.anchors.fit.after, names),
        remarks=remarks,
        sheet=sheet,
        commands=[("train", train_command)],
    )


def _choice(plan: AnchorPlan, anchors: Anchors, class_names: Sequence[str]) -> AnchorChoice:
    side = np.sqrt(plan.sides.prod(axis=1))
    groups = np.digitize(side, _BORDERS)
    limits = ["0", *map(str, _BORDERS), ""]
    by_size = {
        f"{low} to {high} px" if high else f"from {low} px": _share(anchors, groups == i)
        for i, (low, high) in enumerate(pairwise(limits))
    }
    return AnchorChoice(
        sizes=dict(zip(plan.levels, anchors.sizes)),
        aspect_ratios=anchors.aspect_ratios[0],
        reached_by_class={n: _share(anchors, plan.classes == k) for k, n in enumerate(class_names)},
        reached_by_size=by_size,
        reached=anchors.coverage,
    )


def _share(anchors: Anchors, chosen: np.ndarray) -> float:
    return float(anchors.are_reached[chosen].mean()) if chosen.any() else float("nan")
