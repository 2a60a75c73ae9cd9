"""What a data set looks like to a model: images, boxes after resizing, boxes without an anchor."""

import numpy as np
from detectron2.config import CfgNode

from ..data.anchor_reach import foreground_iou, short_edge
from ..data.dataset_facts import DatasetFacts
from ..data.findings import counted
from ..data.images.image_files import ImageFacts
from ..data.resized_boxes import ResizedBoxes
from .tables import facts as fact_lines
from .tables import table

# Of areas in pixels of the resized image: COCO's borders of small, medium and large.
AREA_BORDERS = (32**2, 96**2)
AREA_NAMES = ("small", "medium", "large")
_MOST_CLASSES = 40
# From this share of a class's boxes on, that no anchor reaches is warned of.
_MANY_UNREACHED = 0.1
_MOST_NAMED = 5
_NAME_WIDTH = 14


def describe_dataset(
    cfg: CfgNode,
    facts: DatasetFacts,
    image_facts: ImageFacts | None,
    boxes: ResizedBoxes,
    is_train: bool,
) -> list[str]:
    """Lines of text about one data set."""
    used_in = [key for key in ("TRAIN", "TEST") if facts.name in cfg.DATASETS[key]]
    pairs = [
        ("used in", " and ".join(f"DATASETS.{key}" for key in used_in)),
        ("read from", facts.source),
        (
            "has",
            f"{counted(facts.num_images, 'image', 'images')}, "
            f"{counted(facts.num_boxes, 'box', 'boxes')}, "
            f"{counted(facts.num_crowds, 'crowd or ignored box', 'crowds and ignored boxes')}, "
            f"{counted(len(facts.class_names), 'class', 'classes')}",
        ),
    ]
    if image_facts is not None:
        pairs.append(("image files", _files(image_facts)))
    sizes = facts.sizes[~np.isnan(facts.sizes).any(axis=1)]
    if len(sizes):
        pairs.append(("image sizes", _sizes(sizes)))
        pairs.append(("resized by", describe_resizing(cfg, is_train)))
    pairs.append(("in an image", _per_image(cfg, facts)))
    lines = fact_lines(pairs)
    if len(boxes.areas):
        lines += ["", *_class_table(cfg, facts, boxes)]
    return lines


def unreached_warnings(cfg: CfgNode, facts: DatasetFacts, boxes: ResizedBoxes) -> list[str]:
    """A sentence if there are classes many of whose boxes have no anchor near them."""
    iou = foreground_iou(cfg)
    if boxes.are_reached is None or iou is None:
        return []
    is_unreached = ~boxes.are_reached
    counts = np.bincount(boxes.classes, minlength=len(facts.class_names))
    unreached = np.bincount(boxes.classes[is_unreached], minlength=len(facts.class_names))
    shares = unreached / np.maximum(counts, 1)
    order = np.argsort(-shares, kind="stable")
    chosen = order[: int((shares >= _MANY_UNREACHED).sum())]
    if not len(chosen):
        return []
    named = [
        f"{_percent(unreached[k], counts[k])} of {facts.class_names[k]}"
        for k in chosen[:_MOST_NAMED]
    ]
    if len(chosen) > _MOST_NAMED:
        named.append(
            f"at least 10% of {counted(len(chosen) - _MOST_NAMED, 'more class', 'more classes')}"
        )
    areas = boxes.areas[np.isin(boxes.classes, chosen) & is_unreached]
    return [
        f"in {facts.name} no anchor reaches an IoU of {iou:g} with {', '.join(named)}, boxes of a "
        f"median size of {np.median(np.sqrt(areas)):.0f} pixels: choose "
        "MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS for them, or the size of images, "
        "INPUT.MIN_SIZE_TRAIN"
    ]


def _files(facts: ImageFacts) -> str:
    parts = [
        counted(facts.num_images - facts.num_remote, "header", "headers") + " read",
        *(f"{mode} {count:,}" for mode, count in facts.modes.most_common()),
    ]
    noted = {
        "bad": len(facts.bad),
        "not on this machine, not looked at": facts.num_remote,
        "turned by EXIF": facts.num_turned,
        "with transparency": facts.num_transparent,
        "of several frames, of which the first counts": facts.num_animated,
    }
    return ", ".join(parts + [f"{count:,} {what}" for what, count in noted.items() if count])


def _sizes(sizes: np.ndarray) -> str:
    unique, counts = np.unique(sizes.astype(int), axis=0, return_counts=True)
    width, height = unique[counts.argmax()]
    if len(unique) == 1:
        return f"all {width} x {height}"
    (w1, h1), (w2, h2) = unique.min(axis=0), unique.max(axis=0)
    return (
        f"{len(unique):,} different, {w1} to {w2} wide, {h1} to {h2} high, most often {width} x "
        f"{height} ({counts.max():,})"
    )


def describe_resizing(cfg: CfgNode, is_train: bool) -> str:
    """The keys that say to which sizes images are resized."""
    edge = short_edge(cfg, is_train)
    name, max_size = "TEST", cfg.INPUT.MAX_SIZE_TEST
    if is_train:
        name, max_size = "TRAIN", cfg.INPUT.MAX_SIZE_TRAIN
    if edge == 0:
        return f"INPUT.MIN_SIZE_{name} 0: not at all"
    given = cfg.INPUT[f"MIN_SIZE_{name}"]
    several = not isinstance(given, int) and len(given) > 1
    middle = f" (the middle of {min(given)} to {max(given)})" if several else ""
    return f"INPUT.MIN_SIZE_{name} {edge}{middle}, MAX_SIZE_{name} {max_size}"


def _per_image(cfg: CfgNode, facts: DatasetFacts) -> str:
    counts = facts.boxes_per_image
    if not len(counts):
        return "no images"
    return (
        f"{counted(round(np.median(counts)), 'box', 'boxes')} (median), at most {counts.max():,} "
        f"(TEST.DETECTIONS_PER_IMAGE {cfg.TEST.DETECTIONS_PER_IMAGE}), "
        f"none in {counted(int((counts == 0).sum()), 'image', 'images')}"
    )


def _class_table(cfg: CfgNode, facts: DatasetFacts, boxes: ResizedBoxes) -> list[str]:
    """A row for each class that has boxes, the most frequent first, and one for all."""
    iou = foreground_iou(cfg)
    is_unreached = None if boxes.are_reached is None else ~boxes.are_reached
    counts = np.bincount(boxes.classes, minlength=len(facts.class_names))
    order = np.argsort(-counts, kind="stable")
    num_shown = min(_MOST_CLASSES, int((counts > 0).sum()))
    names = [str(facts.class_names[k])[:_NAME_WIDTH] for k in order[:num_shown]]
    rows = [_row(boxes.classes == k, boxes, is_unreached) for k in order[:num_shown]]
    rest = counts[order[num_shown:]]
    if len(rest):
        names.append(f"{len(rest):,} more")
        span = [f"{rest.min():,}", f"{rest.max():,}"]
        rows.append(["-".join(dict.fromkeys(span)), *[""] * (len(rows[0]) - 1)])
    names.append("all")
    rows.append(_row(np.ones(len(boxes.classes), bool), boxes, is_unreached))

    groups = {
        "": ["boxes", "images"],
        "share of boxes": list(AREA_NAMES),
        "size": ["5%", "50%", "95%"],
    }
    if is_unreached is not None:
        groups[f"no anchor (IoU<{iou:g})"] = ["all", *AREA_NAMES]
    columns = zip(*rows)
    return [
        *table(
            ["class", *names],
            [
                (group, [(title, *next(columns)) for title in titles])
                for group, titles in groups.items()
            ],
        ),
        "size: square root of the area in pixels after resizing; small: below 32, large: from 96",
        "(COCO's APs, APm and APl count pixels of the images as they are)",
    ]


def _row(chosen: np.ndarray, boxes: ResizedBoxes, is_unreached: np.ndarray | None) -> list[str]:
    """Cells of the boxes that are ``chosen`` (M',)."""
    areas, count = np.digitize(boxes.areas, AREA_BORDERS), int(chosen.sum())
    of_area = [chosen & (areas == i) for i in range(len(AREA_NAMES))]
    row = [f"{count:,}", f"{len(np.unique(boxes.images[chosen])):,}"]
    row += [_percent(int(x.sum()), count) for x in of_area]
    sizes = np.sqrt(boxes.areas[chosen])
    row += [f"{x:.0f}" for x in np.quantile(sizes, (0.05, 0.5, 0.95))] if count else ["-"] * 3
    if is_unreached is not None:
        row += [_percent(int((x & is_unreached).sum()), int(x.sum())) for x in (chosen, *of_area)]
    return row


def _percent(part: int, whole: int) -> str:
    """Only all is 100%, only nothing 0%."""
    if whole == 0:
        return "-"
    share = 100 * part / whole
    return f"{min(99.0, max(1.0, share)) if 0 < part < whole else share:.0f}%"
