"""Results that an evaluation cannot give are refused before the training, not after it."""

import pytest
from conftest import ROOT
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from retinanet_plugin.config import load_config
from retinanet_plugin.data.dataset_facts import DatasetFacts
from retinanet_plugin.engine.checks.expected_results import check_expected_results
from retinanet_plugin.errors import UserError

CAT = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}


@pytest.mark.parametrize(
    ("evaluator", "metric", "classes", "images", "words"),
    [
        ("coco", "APs", ["cat", "dog"], [{"annotations": [CAT]}], None),
        ("coco", "AP-cat", ["cat", "dog"], [{"annotations": [CAT]}], None),
        ("coco", "AP-dog", ["cat", "dog"], [{"annotations": [CAT]}], "AP-dog"),  # has no boxes
        ("coco", "AP-cat", ["cat"], [{"annotations": [CAT]}], "AP-cat"),  # the mean is all
        ("coco", "AP-cow", ["cat", "dog"], [{"annotations": [CAT]}], "choose from AP, AP50,"),
        ("coco", "AP", ["cat"], [{"annotations": [{**CAT, "iscrowd": 1}]}], "no boxes"),
        ("coco", "AP", ["cat"], [{}], "no boxes to evaluate with"),
        ("pascal_voc", "AP50", ["cat"], [{"annotations": [CAT]}], None),
        ("pascal_voc", "APs", ["cat"], [{"annotations": [CAT]}], "choose from AP, AP50, AP75"),
    ],
)
def test_what_an_evaluation_gives(evaluator, metric, classes, images, words, request):
    name = request.node.name
    MetadataCatalog.get(name).evaluator_type = evaluator
    config = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")
    expected = str([["bbox", metric, 50.0, 1.0]])
    cfg = load_config(config, ["TEST.EXPECTED_RESULTS", expected, "DATASETS.TEST", str((name,))])
    datasets = {name: DatasetFacts(name, name, classes, images, any(images))}
    if words is None:
        check_expected_results(cfg, datasets)
        return
    with pytest.raises(UserError, match=r"TEST\.EXPECTED_RESULTS") as error:
        check_expected_results(cfg, datasets)
    assert words in str(error.value)
