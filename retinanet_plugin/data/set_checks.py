"""What is wrong, or probably not meant, in data sets as wholes, and between them."""

import itertools
from collections.abc import Sequence

from detectron2.config import CfgNode

from .dataset_facts import DatasetFacts
from .findings import Findings, counted, shown


def check_each_set(
    facts: DatasetFacts, trained: bool, evaluated: bool, cfg: CfgNode, findings: Findings
) -> None:
    """Find what one data set lacks.

    Args:
        facts: of the data set.
        trained: whether it is one of ``DATASETS.TRAIN``.
        evaluated: whether it is one of ``DATASETS.TEST``.
        cfg: of the training or evaluation.
        findings: is added to.
    """
    if not facts.images:
        remedy = "add images to it, or take the data set out of DATASETS"
        findings.error("no images", facts.source, "it lists no image", remedy)
        return
    if trained:
        _check_trained(facts, cfg, findings)
    if evaluated and facts.is_annotated and not facts.annotations:
        remedy = "there is nothing to compare detections with: annotate objects"
        findings.warn("no boxes", facts.source, "it has no annotation", remedy)
    _check_crowdedness(facts, cfg.TEST.DETECTIONS_PER_IMAGE, findings)
    file_name, count = max(facts.files().items(), key=lambda item: item[1])
    if count > 1:
        num_repeated = sum(count - 1 for count in facts.files().values())
        what = f"the image file {file_name} is listed {count} times"
        remedy = "list it once, with all of its objects"
        findings.warn("same file", facts.source, what, remedy, num_repeated)


def check_sets_together(
    facts: dict[str, DatasetFacts],
    train: Sequence[str],
    test: Sequence[str],
    cfg: CfgNode,
    findings: Findings,
) -> None:
    """Find what differs between data sets, or between them and the config.

    Args:
        facts: of the data sets that could be read, by their names.
        train, test: names of data sets.
        cfg: of the training or evaluation.
        findings: is added to.
    """
    if not facts:
        return
    _check_classes(list(facts.values()), cfg.MODEL.RETINANET.NUM_CLASSES, findings)
    trained = [facts[name] for name in train if name in facts]
    _check_batch(trained, cfg.SOLVER.IMS_PER_BATCH, findings)
    for first, second in itertools.combinations(dict.fromkeys(train), 2):
        if first in facts and second in facts:
            _check_shared(facts[first], facts[second], findings)
    for tested in (facts[name] for name in test if name in facts):
        if trained and tested.name not in train:
            if not findings.errors:  # which may hide what is trained on
                _check_only_tested(trained, tested, findings)
            _check_leak(trained, tested, findings)


def _check_trained(facts: DatasetFacts, cfg: CfgNode, findings: Findings) -> None:
    if not (facts.has_area & ~facts.is_crowd).any():
        what = "it has no box to train on"
        remedy = "annotate objects, or take it out of DATASETS.TRAIN"
        if facts.num_crowds:
            what += (
                f", since iscrowd (or ignore) is 1 in {facts.num_crowds:,} of its "
                f"{len(facts.annotations):,} annotations"
            )
            remedy = "set iscrowd 0 for single objects"
        elif facts.annotations:
            what += f", since none has an area, such as {facts.describe(0)}"
        findings.error("no boxes", facts.source, what, remedy)
        return
    num_empty = int((facts.boxes_per_image == 0).sum())
    if num_empty and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        first = facts.images[int((facts.boxes_per_image == 0).argmax())]["file_name"]
        findings.warn(
            "empty images",
            facts.source,
            f"{num_empty:,} of its {counted(facts.num_images, 'image', 'images')} "
            f"{'has' if num_empty == 1 else 'have'} no object, the first is {first}",
            "they are not trained on, unless DATALOADER.FILTER_EMPTY_ANNOTATIONS is False",
        )
    absent = [name for name, count in zip(facts.class_names, facts.class_counts) if not count]
    if absent:
        what = f"it has no object of {len(absent)} of its {len(facts.class_names)} classes"
        remedy = "nothing will be learnt of them: annotate objects, or remove the categories"
        if facts.class_counts[0] == 0 and len(absent) == 1 < len(facts.class_names):
            remedy += " (a first category without objects may be the placeholder of an export)"
        findings.warn("absent classes", facts.source, f"{what}: {_list(absent)}", remedy)


def _check_batch(trained: list[DatasetFacts], batch_size: int, findings: Findings) -> None:
    num_images = sum(facts.num_images for facts in trained)
    if 0 < num_images < batch_size:
        what = f"{batch_size} is more than the {num_images} images that are trained on"
        remedy = "a batch has some of them several times: lower it, or add images"
        findings.warn("batch", "SOLVER.IMS_PER_BATCH", what, remedy)


def _check_crowdedness(facts: DatasetFacts, most: int, findings: Findings) -> None:
    """More objects in an image than detections are kept."""
    num_full = int((facts.boxes_per_image > most).sum())
    if num_full:
        fullest = int(facts.boxes_per_image.argmax())
        findings.warn(
            "crowded images",
            facts.source,
            f"{counted(num_full, 'image has', 'images have')} more objects than the "
            f"TEST.DETECTIONS_PER_IMAGE {most} that are kept, the most are "
            f"{facts.boxes_per_image[fullest]} in {facts.images[fullest]['file_name']}",
            "raise TEST.DETECTIONS_PER_IMAGE",
        )


def _check_classes(facts: list[DatasetFacts], num_classes: int, findings: Findings) -> None:
    first, *others = facts
    for other in others:
        if other.class_names != first.class_names:
            findings.error(
                "classes",
                "DATASETS",
                f"the categories of {first.name} ({_list(first.class_names)}) and {other.name} "
                f"({_list(other.class_names)}) differ{_difference(first, other)}",
                "use data sets with the same categories in the same order of ids",
            )
    if num_classes != len(first.class_names):
        findings.error(
            "num classes",
            "MODEL.RETINANET.NUM_CLASSES",
            f"it is {num_classes} but {first.name} has {len(first.class_names)} categories "
            f"({_list(first.class_names)})",
            f"set MODEL.RETINANET.NUM_CLASSES {len(first.class_names)}",
        )


def _difference(first: DatasetFacts, other: DatasetFacts) -> str:
    """The first class that differs, where the lists are long."""
    for i, (mine, theirs) in enumerate(zip(first.class_names, other.class_names)):
        if mine != theirs:
            return f", class {i} is {shown(mine)} and {shown(theirs)}"
    return ""


def _check_only_tested(
    trained: list[DatasetFacts], tested: DatasetFacts, findings: Findings
) -> None:
    lists = [facts.class_counts for facts in trained]
    if any(len(counts) != len(tested.class_counts) for counts in lists):
        return
    only_tested = [
        name
        for name, count, *others in zip(tested.class_names, tested.class_counts, *lists)
        if count and not sum(others)
    ]
    if only_tested:
        findings.warn(
            "only tested",
            tested.source,
            f"it has objects of {counted(len(only_tested), 'class', 'classes')} that "
            f"DATASETS.TRAIN has none of: {_list(only_tested)}",
            "their AP will be 0: annotate such objects for training",
        )


def _common_files(facts: DatasetFacts, others: DatasetFacts) -> list[str]:
    """The image files of ``facts`` that ``others`` have too, in its order."""
    files = others.files()
    return [file for file in facts.files() if file in files]


def _check_shared(first: DatasetFacts, second: DatasetFacts, findings: Findings) -> None:
    """Images of two training sets: what one set says nothing of is background in it."""
    common = _common_files(second, first)
    if common:
        findings.warn(
            "shared",
            second.source,
            f"{len(common):,} of its {len(second.files()):,} image files are in {first.name} too, "
            f"such as {common[0]}, and each list has the objects of the other as background",
            "merge the two, with all objects of an image in one list",
        )


def _check_leak(trained: list[DatasetFacts], tested: DatasetFacts, findings: Findings) -> None:
    for facts in trained:
        common = _common_files(facts, tested)
        if common:
            findings.warn(
                "leak",
                tested.source,
                f"{len(common):,} of its {len(tested.files()):,} image files are in {facts.name} "
                f"too, such as {common[0]}",
                "an evaluation on images that were trained on says little: separate them",
            )


def _list(names: Sequence[str], most: int = 6) -> str:
    shown_names = ", ".join(names[:most])
    return shown_names if len(names) <= most else f"{shown_names}, ... {len(names)} in all"
