"""Whether TEST.EXPECTED_RESULTS can be met at all, known before hours of training."""

from collections.abc import Iterator

from detectron2.config import CfgNode

from ...data.checks import check_evaluator_type
from ...data.dataset_facts import DatasetFacts
from ...errors import UserError, listed
from .config_values import COCO_METRICS, VOC_METRICS

_MOST_NAMED = 20


def check_expected_results(cfg: CfgNode, datasets: dict[str, DatasetFacts]) -> None:
    """Refuse results that the evaluation of ``DATASETS.TEST`` does not give.

    Args:
        cfg: of which ``TEST.EXPECTED_RESULTS`` have the right form, and one test set.
        datasets: what each data set has, by its name.

    Raises:
        UserError: the test set has no boxes, or its evaluator no such metric.
    """
    if not cfg.TEST.EXPECTED_RESULTS:
        return
    name = cfg.DATASETS.TEST[0]
    facts = datasets[name]
    if not facts.is_annotated or not facts.num_boxes:
        raise UserError(
            f"TEST.EXPECTED_RESULTS is {cfg.TEST.EXPECTED_RESULTS} but the test set {name} has no "
            "boxes to evaluate with: empty TEST.EXPECTED_RESULTS, or name another data set"
        )
    given = list(VOC_METRICS if check_evaluator_type(name) == "pascal_voc" else _of_coco(facts))
    for _, metric, *_ in cfg.TEST.EXPECTED_RESULTS:
        if metric not in given:
            raise UserError(
                f"TEST.EXPECTED_RESULTS has {metric}, which the evaluation of {name} does not "
                f"give: choose from {listed(given, _MOST_NAMED)}"
            )


def _of_coco(facts: DatasetFacts) -> Iterator[str]:
    yield from COCO_METRICS
    if len(facts.class_names) > 1:  # of a single class there is only the mean
        for name, count in zip(facts.class_names, facts.class_counts):
            if count:  # of none, AP is NaN, which no tolerance allows
                yield f"AP-{name}"
