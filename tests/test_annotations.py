"""Annotation files that training or evaluation would stumble over: what check_datasets says."""

from pathlib import Path

import pytest
from conftest import ROOT
from detectron2.data import DatasetCatalog, MetadataCatalog

from retinanet_plugin import UserError
from retinanet_plugin.config import load_config
from retinanet_plugin.data.checks import check_datasets
from retinanet_plugin.data.coco_json import register_coco_json

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")


@pytest.fixture
def error_of(digits_entries):
    """``error_of(train=..., val=...)``: the sentence about these entries of COCO_JSON."""

    def run(train=digits_entries[0], val=digits_entries[1]):
        names = {"DATASETS.TRAIN": train[0], "DATASETS.TEST": val[0]}
        for name in names.values():  # registered by an earlier call, perhaps otherwise
            if name in DatasetCatalog.list():
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)
        cfg = load_config(INSTANT, [x for key, name in names.items() for x in (key, str((name,)))])
        register_coco_json([train, val])
        with pytest.raises(UserError) as error:
            check_datasets(cfg)
        assert "\n" not in str(error.value)
        return str(error.value)

    return run


def test_train_and_test_categories_differ(error_of, digits_entries, broken_annotations):
    def rename(coco):
        coco["categories"][3]["name"] = "drei"

    name, _, images = digits_entries[1]
    message = error_of(val=(name, broken_annotations(rename), images))
    assert "the categories of" in message
    assert "drei" in message


def test_annotation_file_missing(error_of, digits_entries, tmp_path):
    name, _, images = digits_entries[1]
    path = str(tmp_path / "none.json")
    message = error_of(val=(name, path, images))
    assert f"the annotation file {path} of {name} cannot be read (No such file" in message


def test_annotation_file_is_no_json(error_of, digits_entries, tmp_path):
    name, _, images = digits_entries[1]
    path = tmp_path / "text.json"
    path.write_text("<xml/>")
    assert f"the annotation file {path} of {name} is not JSON" in error_of(
        val=(name, str(path), images)
    )


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_annotation_file_lacks_a_key(error_of, digits_entries, broken_annotations, key):
    name, _, images = digits_entries[1]
    path = broken_annotations(lambda coco: coco.pop(key))
    assert f"{path} of {name} has no list '{key}'" in error_of(val=(name, path, images))


def test_a_test_set_of_coco_needs_no_annotations(digits_entries, broken_annotations, tmp_path):
    name, _, images = digits_entries[1]
    path = Path(broken_annotations(lambda coco: coco.pop("annotations")))
    path = str(path.rename(tmp_path / "image_info_test-dev2017.json"))
    cfg = load_config(INSTANT, ["DATASETS.TEST", f"('{name}',)"])
    register_coco_json([(name, path, images)])
    check_datasets(cfg, eval_only=True)  # raises nothing


def test_annotations_of_another_shape(error_of, digits_entries, broken_annotations):
    name, _, images = digits_entries[1]
    path = broken_annotations(lambda coco: coco["images"][0].pop("file_name"))
    assert f"{path} of {name}: images[0] has no 'file_name'" in error_of(val=(name, path, images))
    path = broken_annotations(lambda coco: coco["categories"].append("cat"))
    assert f"{path} of {name}: categories[10] has no 'id'" in error_of(val=(name, path, images))


def test_annotation_of_an_unknown_category_or_image(error_of, digits_entries, broken_annotations):
    name, _, images = digits_entries[1]

    def change(key, value):
        return broken_annotations(lambda coco: coco["annotations"][0].update({key: value}))

    message = error_of(val=(name, change("category_id", 77), images))
    assert "annotation 1 has category_id 77, which 'categories' lacks" in message
    message = error_of(val=(name, change("image_id", 999), images))
    assert "annotation 1 has image_id 999, which 'images' lacks" in message
    message = error_of(val=(name, change("bbox", [1, 2, 3]), images))
    assert "annotation 1 has bbox [1, 2, 3]: write [x, y, width, height]" in message


def test_images_missing(error_of, digits_entries, tmp_path):
    name, annotations, _ = digits_entries[1]
    (tmp_path / "images").mkdir()
    for i in (1, 2):
        (tmp_path / f"images/{i:05d}.jpg").write_bytes(b"")
    message = error_of(val=(name, annotations, str(tmp_path / "images")))
    assert f"2 of the 4 images of {name} are missing" in message
    assert str(tmp_path / "images" / "00003.jpg") in message
    message = error_of(val=(name, annotations, str(tmp_path / "nowhere")))
    assert f"4 of the 4 images of {name} are missing" in message


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("images", {"id": None}, "images[0] has id None: write a value of type int or str"),
        ("images", {"id": 2}, "images[1] has id 2, as another one has"),
        ("images", {"file_name": None}, "images[0] has file_name None: write a value of type str"),
        ("images", {"height": "160"}, "images[0] has height '160': write a value of type int"),
        ("annotations", {"id": 0}, "annotation 0 would count as not found"),
        ("annotations", {"id": 2}, "annotations[1] has id 2, as another one has"),
        ("annotations", {"image_id": []}, "annotations[0] has image_id []"),
        ("annotations", {"area": None}, "annotations[0] has area None"),
        ("annotations", {"bbox": [1, 2, -3, 4]}, "has bbox [1, 2, -3, 4]: write [x, y, width"),
        ("categories", {"id": 2}, "categories[1] has id 2, as another one has"),
        ("categories", {"name": None}, "categories[0] has name None: write a value of type str"),
    ],
)
def test_fields_of_annotation_files(
    error_of, digits_entries, broken_annotations, key, change, message
):
    name, _, images = digits_entries[1]
    path = broken_annotations(lambda coco: coco[key][0].update(change))
    assert message in error_of(val=(name, path, images))


@pytest.mark.parametrize("field", ["area", "iscrowd"])
def test_what_only_evaluation_reads(error_of, digits_entries, broken_annotations, field):
    name, _, images = digits_entries[1]
    path = broken_annotations(lambda coco: coco["annotations"][0].pop(field))
    assert f"annotations[0] has no '{field}'" in error_of(val=(name, path, images))


def test_nothing_to_train_on(error_of, digits_entries, broken_annotations):
    name, _, _ = digits_entries[0]
    path = broken_annotations(lambda coco: coco["annotations"].clear())
    message = error_of(train=(name, path, digits_entries[1][2]))
    assert f"{path} of {name} has no box to train on" in message
