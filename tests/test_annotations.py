"""Annotations: what is read of them, and what check_datasets says of those that cannot be."""

import gc
import json
import logging
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, forget
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from retinanet_plugin import UserError
from retinanet_plugin.config import load_config
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.data.annotations.truth import TRUTH_FILE, coco_evaluator
from retinanet_plugin.data.checks import check_datasets, inspect_datasets, num_classes_of
from retinanet_plugin.data.images.image_files import inspect_image_files

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")


def config(train=None, test=None):
    keys = {"DATASETS.TRAIN": train, "DATASETS.TEST": test}
    return load_config(
        INSTANT, [x for key, name in keys.items() for x in (key, str((name,) if name else ()))]
    )


@pytest.fixture
def check(digits_entries):
    """``check(train=..., val=...)`` checks these entries of COCO_JSON."""

    def run(train=digits_entries[0], val=digits_entries[1]):
        forget(train[0], val[0])
        register_coco_json([train, val])
        return check_datasets(config(train[0], val[0]))

    return run


@pytest.fixture
def error_of(check):
    """``error_of(train=..., val=...)``: the sentence about these entries of COCO_JSON."""

    def run(**entries):
        with pytest.raises(UserError) as error:
            check(**entries)
        assert "\n" not in str(error.value)
        return str(error.value)

    return run


@pytest.fixture
def changed(digits_entries, broken_annotations):
    """``changed(change)``: an entry of COCO_JSON for the val set, edited by ``change(coco)``."""
    name, _, images = digits_entries[1]
    return lambda change: (name, broken_annotations(change), images)


@pytest.fixture
def warnings_of(check, changed, caplog):
    """``warnings_of(change)``: what is logged of a train set that ``change(coco)`` has edited."""

    def run(change):
        _, path, images = changed(change)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "detectron2"):
            check(train=("changed_train", path, images))
        return [r.getMessage() for r in caplog.records if f"{path} of changed" in r.getMessage()]

    return run


def first(key, **fields):
    """A change of the first entry of a list."""
    return lambda coco: coco[key][0].update(fields)


def every(**fields):
    """A change of all annotations."""
    return lambda coco: [a.update(fields) for a in coco["annotations"]]


# ---- files ----


def test_train_and_test_categories_differ(error_of, changed):
    message = error_of(val=changed(lambda coco: coco["categories"][3].update(name="drei")))
    assert "the categories of" in message
    assert 'class 3 is "3" and "drei"' in message


def test_annotation_file_missing(error_of, digits_entries, tmp_path):
    name, _, images = digits_entries[1]
    path = str(tmp_path / "none.json")
    message = error_of(val=(name, path, images))
    assert f"the annotation file {path} of {name}: it cannot be read (No such file" in message


@pytest.mark.parametrize("content", ["<xml/>", "[" * 100_000, '{"images": [', ""])
def test_annotation_file_is_no_json(error_of, digits_entries, tmp_path, content):
    name, _, images = digits_entries[1]
    path = tmp_path / "text.json"
    path.write_text(content)
    message = error_of(val=(name, str(path), images))
    assert f"the annotation file {path} of {name}: it is not JSON" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b\x08", r"it begins with '\x1f"),
        (b"<annotation>", ", it begins with '<annotation>': export"),
        (b"0 0.5 0.5 0.1 0.1", ", it begins with '0 0.5 0.5 0.1 0.1': export"),
        (b"[{}]", ": it is a list, as of detections, and no object with the lists 'images', "),
        (b"7", ": it is 7, and no object with the lists 'images', 'annotations', 'categories': "),
    ],
)
def test_files_of_other_formats(error_of, digits_entries, tmp_path, content, message):
    name, _, images = digits_entries[1]
    path = tmp_path / "val.json"
    path.write_bytes(content)
    assert message in error_of(val=(name, str(path), images))


def test_reading_leaves_the_search_for_garbage_as_it_was(error_of, check, digits_entries, tmp_path):
    name, _, images = digits_entries[1]
    (tmp_path / "val.json").write_text("{")
    assert "not JSON" in error_of(val=(name, str(tmp_path / "val.json"), images))
    assert gc.isenabled()
    gc.disable()
    try:
        check()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_folder_in_place_of_its_file(error_of, digits_entries, tmp_path):
    name, _, images = digits_entries[1]
    assert "it is a folder: name a JSON" in error_of(val=(name, str(tmp_path), images))
    (tmp_path / "_annotations.coco.json").touch()
    message = error_of(val=(name, str(tmp_path), images))
    assert "it is a folder: name a file in it, such as _annotations.coco.json" in message


@pytest.mark.parametrize(
    ("annotations", "named", "found", "converted"),
    [
        ("VOC2007/Annotations/a.xml", "VOC2007", "Annotations/a.xml, not of COCO", "VOC2007"),
        ("labels/a.xml", "labels/a.xml", "it begins with '0 0.5'", "labels"),
        ("train/labels/a.txt", "train", "labels/a.txt, not of COCO's format", "train"),
        (
            "yolo set/data.yaml",
            "yolo set/data.yaml",
            "it begins with '0 0.5'",
            "yolo set/data.yaml",
        ),
    ],
)
def test_other_formats_are_to_be_converted(
    error_of, digits_entries, tmp_path, annotations, named, found, converted
):
    name, _, images = digits_entries[1]
    (tmp_path / annotations).parent.mkdir(parents=True)
    (tmp_path / annotations).write_text("0 0.5")
    message = error_of(val=(name, str(tmp_path / named), images))
    assert found in message
    path = shlex.quote(str(tmp_path / converted))
    assert f"convert it by python -m retinanet_plugin convert {path} annotations.json" in message


def test_a_key_that_is_there_twice(error_of, changed, digits_entries):
    name, path, images = changed(lambda coco: None)
    text = Path(path).read_text()
    Path(path).write_text(text.replace('"bbox"', '"bbox": [1, 2, 3, 4], "bbox"', 1))
    assert "it has 'bbox' twice in one entry, which has id 1" in error_of(val=(name, path, images))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_of_windows(check, changed, encoding):
    entry = changed(lambda coco: None)
    Path(entry[1]).write_text(Path(entry[1]).read_text(), encoding=encoding)
    assert check(val=entry)[entry[0]].num_images == 4


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_annotation_file_lacks_a_key(error_of, changed, key):
    assert f": it has no list '{key}'" in error_of(val=changed(lambda coco: coco.pop(key)))


def test_a_test_set_of_coco_needs_no_annotations(changed, tmp_path):
    name, path, images = changed(lambda coco: coco.pop("annotations"))
    path = str(Path(path).rename(tmp_path / "image_info_test-dev2017.json"))
    forget(name)
    register_coco_json([(name, path, images)])
    facts = check_datasets(config(test=name), eval_only=True)[name]
    assert not facts.is_annotated


# ---- entries that mean nothing ----


@pytest.mark.parametrize(
    ("key", "fields", "message"),
    [
        ("images", {"id": None}, "images[0] (00001.jpg) has id null: write a value of type int"),
        ("images", {"id": 2}, "images[1] (00002.jpg) has id 2, as another one has"),
        ("images", {"id": "1"}, "'images' has the id 2, a number, and \"1\", a text"),
        ("annotations", {"category_id": 0}, "but the ids of 'categories' are from 1 to 10: number"),
        ("images", {"file_name": None}, "images[0] has file_name null: write a value of type str"),
        ("images", {"file_name": "a\0b"}, r'images[0] (a\x00b) has file_name "a\u0000b": write a'),
        ("images", {"height": "160"}, '(00001.jpg) has height "160": write a value of type int'),
        ("images", {"width": -1, "height": -1}, "images[0] (00001.jpg) has height -1"),
        ("images", {"width": float("nan")}, "images[0] (00001.jpg) has width NaN"),
        ("images", {"width": 0}, "images[0] (00001.jpg) has width 0"),
        ("images", {"width": None}, "images[0] (00001.jpg) has width null"),
        ("annotations", {"image_id": []}, "annotation 1 has image_id [], which 'images' lacks"),
        ("annotations", {"image_id": True}, "annotation 1 has image_id true, which 'images' lacks"),
        ("annotations", {"image_id": 99}, "annotation 1 has image_id 99, which 'images' lacks"),
        ("annotations", {"image_id": "1"}, "image_id \"1\", a text, but 'images' has the number 1"),
        (
            "annotations",
            {"category_id": "1"},
            "category_id \"1\", a text, but 'categories' has the",
        ),
        ("annotations", {"category_id": 77}, "has category_id 77, which 'categories' lacks"),
        ("annotations", {"area": "12"}, 'annotation 1 (00001.jpg) has area "12"'),
        ("annotations", {"iscrowd": "yes"}, 'annotation 1 (00001.jpg) has iscrowd "yes"'),
        ("annotations", {"ignore": 2}, "annotation 1 (00001.jpg) has ignore 2: write 0 or 1"),
        ("annotations", {"bbox": [1, 2, -3, 4]}, "has bbox [1, 2, -3, 4], whose width is negative"),
        ("annotations", {"bbox": [1, 2, 3]}, "annotation 1 (00001.jpg) has bbox [1, 2, 3]"),
        ("annotations", {"bbox": [1, 2, 3, 4, 5]}, "has bbox [1, 2, 3, 4, 5]"),
        ("annotations", {"bbox": [1, 2, 3, True]}, "has bbox [1, 2, 3, true]"),
        ("annotations", {"bbox": [1, 2, 3, float("nan")]}, "has bbox [1, 2, 3, NaN]"),
        ("annotations", {"bbox": [1, 2, 3, 10**400]}, "has bbox [1, 2, 3, 1000"),
        ("annotations", {"bbox": [1, 2, 3, "4"]}, 'has bbox [1, 2, 3, "4"]'),
        ("annotations", {"bbox": [500, 2, 3, 4]}, "which lies outside its image of 160 x 160"),
        ("categories", {"id": 2}, "categories[1] has id 2, as another one has"),
        ("categories", {"id": "1"}, 'categories[0] has id "1": write a value of type int'),
        ("categories", {"name": None}, "categories[0] has name null: write a value of type str"),
        ("categories", {"name": "1"}, 'categories[1] has name "1", as another one has'),
    ],
)
def test_entries_that_cannot_be_read(error_of, changed, key, fields, message):
    assert message in error_of(val=changed(first(key, **fields)))


def test_the_same_entry_twice(error_of, changed):
    entry = changed(lambda coco: coco["images"].append(dict(coco["images"][0])))
    assert "(00001.jpg) has id 1, and all else, as another one has: remove one" in error_of(
        val=entry
    )


def test_a_name_with_a_scheme_is_in_the_image_folder(digits_entries, changed):
    entry = changed(first("images", file_name="s3://bucket/a.jpg"))
    forget(entry[0])
    register_coco_json([entry])
    cfg = config(test=entry[0])
    findings, _ = inspect_image_files(check_datasets(cfg, eval_only=True), cfg)
    (error,) = findings.errors.values()
    assert "s3://bucket/a.jpg) does not exist" in error.example


def test_entries_of_another_shape(error_of, changed):
    message = error_of(val=changed(lambda coco: coco["images"][0].pop("file_name")))
    assert ": images[0] has no 'file_name'" in message
    message = error_of(val=changed(lambda coco: coco["categories"].append("cat")))
    assert ": categories[10] is \"cat\", which has no 'id'" in message


def test_findings_are_counted(error_of, changed):
    def change(coco):
        coco["images"][0]["height"] = "160"
        for a in coco["annotations"]:
            a["bbox"] = a["bbox"][:3]

    entry = changed(change)
    count = len(json.loads(Path(entry[1]).read_text())["annotations"])
    forget(entry[0])
    register_coco_json([entry])
    findings, _ = inspect_datasets(config(test=entry[0]), eval_only=True)
    assert len(findings.errors) == 3  # and annotations of the image that cannot be read
    found = findings.errors["annotations bbox", next(iter(findings.errors))[1]]
    assert 0 < found.count < count
    assert f"({found.count - 1} more like it): write [x, y, width, height]" in str(found)
    with pytest.raises(UserError, match="2 more kinds of mistakes"):
        findings.raise_errors()


# ---- entries that mean something ----


@pytest.mark.parametrize(
    ("fields", "crowd"),
    [
        ({"iscrowd": None}, 0),
        ({"iscrowd": False}, 0),
        ({"iscrowd": "0"}, 0),
        ({"iscrowd": True}, 1),
        ({"iscrowd": 1}, 1),
        ({"ignore": 1}, 1),
        ({"ignore": 0, "iscrowd": 1}, 1),
        ({"segmentation": [[1, 2, 3, 4]]}, 0),
        ({"segmentation": "none"}, 0),
        ({"segmentation": {"counts": 3}}, 0),
        ({"area": None, "id": None}, 0),
        ({"id": 2}, 0),
        ({"bbox": [-3, 4.5, 20, 1e3]}, 0),
    ],
)
def test_a_box_is_read_as_meant(check, changed, fields, crowd):
    entry = changed(first("annotations", **fields))
    expected = json.loads(Path(entry[1]).read_text())["annotations"]
    facts = check(val=entry)[entry[0]]
    dicts = DatasetCatalog.get(entry[0])
    assert sum(len(image["annotations"]) for image in dicts) == len(expected)
    box = dicts[0]["annotations"][0]
    assert (box["bbox"], box["bbox_mode"]) == (expected[0]["bbox"], BoxMode.XYWH_ABS)
    assert box["iscrowd"] == crowd == facts.num_crowds
    assert box["category_id"] == expected[0]["category_id"] - 1
    assert "segmentation" not in box


def test_an_image_without_sizes(check, changed):
    entry = changed(lambda coco: [coco["images"][0].pop(key) for key in ("width", "height")])
    check(val=entry)
    image = DatasetCatalog.get(entry[0])[0]
    assert image.keys() == {"image_id", "file_name", "annotations"}


def test_texts_as_ids(check, changed):
    def change(coco):
        for image in coco["images"]:
            image["id"] = f"{image['id']:05d}"
        for a in coco["annotations"]:
            a["image_id"] = f"{a['image_id']:05d}"

    entry = changed(change)
    check(val=entry)
    assert [x["image_id"] for x in DatasetCatalog.get(entry[0])] == [
        "00001",
        "00002",
        "00003",
        "00004",
    ]


def test_categories_are_numbered_in_the_order_of_their_ids(check, changed):
    entry = changed(lambda coco: coco["categories"].reverse())
    check(val=entry)
    metadata = MetadataCatalog.get(entry[0])
    assert metadata.thing_classes == [str(i) for i in range(10)]
    assert metadata.thing_dataset_id_to_contiguous_id == {i + 1: i for i in range(10)}


def test_a_file_is_read_once_for_the_check_and_anew_when_it_changes(check, changed):
    entry = changed(first("annotations", bbox=[1, 1, 5, 5]))
    facts = check(val=entry)[entry[0]]
    assert DatasetCatalog.get(entry[0]) is facts.images
    second = DatasetCatalog.get(entry[0])
    assert second is not facts.images
    assert second == facts.images
    check_datasets(config(test=entry[0]), eval_only=True)
    changed(lambda coco: coco["categories"].append({"id": 99, "name": "new"}))
    assert len(DatasetCatalog.get(entry[0])[0]["annotations"]) > 0
    assert len(MetadataCatalog.get(entry[0]).thing_classes) == 11


def test_number_of_classes(digits_entries):
    forget(*(name for name, *_ in digits_entries))
    register_coco_json(digits_entries)
    (train, *_), (val, *_) = digits_entries
    assert num_classes_of(config(train, val)) == (10, train)
    assert num_classes_of(config(test=val)) == (10, val)
    assert num_classes_of(config("of nobody")) is None


# ---- what is probably not meant ----


def corners(coco):
    for a in coco["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x, y, x + w, y + h]


def fractions(coco):
    for a in coco["annotations"]:
        a["bbox"] = [x / 160 for x in a["bbox"]]


def repeat(coco):
    coco["annotations"].append({**coco["annotations"][0], "id": 999})
    coco["images"].append({**coco["images"][0], "id": 999})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first("annotations", bbox=[150, 10, 20, 20]), "a box that leaves its image of 160 x 160"),
        (first("annotations", bbox=[10, 10, 0, 20]), "annotation 1 (00001.jpg) has bbox [10.0, "),
        (first("annotations", bbox=[10, 10, 1e-6, 20]), "which has no area"),
        (first("annotations", bbox=[10, 10, 0.4, 20]), "which is less than a pixel wide or high"),
        (first("annotations", area=1e11), "but area 1e+11, more than it can hold"),
        (repeat, "annotation 999 (00001.jpg) has bbox"),
        (repeat, "00001.jpg is listed 2 times"),
        (first("annotations", id=2), "annotations[1] has id 2, as another one has"),
        (lambda coco: [a.update(category_id=3) for a in coco["annotations"]], "no object of 9 of"),
        (lambda coco: coco["annotations"].pop(0), "of its 4 images have no object, the first is"),
        (
            lambda coco: coco["annotations"].extend(
                {**coco["annotations"][0], "id": 1000 + i, "bbox": [i, 9, 9, 9]} for i in range(100)
            ),
            "1 image has more objects than the TEST.DETECTIONS_PER_IMAGE 100",
        ),
        (
            lambda coco: [a.update(iscrowd=1) for a in coco["annotations"][1:]],
            "boxes have iscrowd (or ignore) 1, the first is annotation 2",
        ),
        (
            lambda coco: [a.update(iscrowd=1) for a in coco["annotations"][::2]],
            "6 of 12 boxes have iscrowd (or ignore) 1, the first is annotation 1",
        ),
    ],
)
def test_warnings(warnings_of, change, message):
    def change_all(coco):
        coco["annotations"] = [
            {**coco["annotations"][i % 2], "id": i + 1, "bbox": [10 + i, 20, 30, 40]}
            for i in range(12)
        ]
        change(coco)

    found = warnings_of(change_all)
    assert any(message in warning for warning in found), found


@pytest.mark.parametrize(
    ("name", "warns"),
    [("one", False), ("Red Cell", True), ("red cell ", True), ("redcell", False)],
)
def test_categories_whose_names_are_almost_the_same(changed, name, warns):
    entry = changed(
        lambda coco: [
            c.update(name=x) for c, x in zip(coco["categories"], (name, "nought", "red cell"))
        ]
    )
    forget(entry[0])
    register_coco_json([entry])
    findings, _ = inspect_datasets(config(entry[0]))
    found = [str(x) for (kind, _), x in findings.warnings.items() if kind == "category name"]
    assert len(found) == warns
    for warning in found:
        assert f'categories[2] has name "red cell", and another one "{name}": ' in warning


def test_most_boxes_as_corners(error_of, changed):
    message = error_of(val=changed(corners))
    assert "boxes leave their image as [x, y, width, height], such as annotation" in message


def test_few_boxes_that_leave_and_none_as_corners(warnings_of):
    def change(coco):
        for a in coco["annotations"]:
            a["bbox"] = [10, 10, 20, 20]
        coco["annotations"][0]["bbox"] = [100, 100, 140, 140]

    assert any("the boxes seem to be corners" in warning for warning in warnings_of(change))


def test_all_boxes_as_fractions(error_of, changed):
    message = error_of(val=changed(fractions))
    assert "the boxes seem to be fractions of the image: write them in pixels" in message


def without_sizes(coco):
    for image in coco["images"]:
        del image["width"], image["height"]


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ([500, 500, 10, 10], "lies outside its image of 160 x 160 pixels"),
        ([150, 10, 20, 20], "a box that leaves its image of 160 x 160"),
    ],
)
def test_boxes_of_images_whose_sizes_only_their_files_say(changed, bbox, message):
    def change(coco):
        without_sizes(coco)
        coco["annotations"][0]["bbox"] = bbox

    entry = changed(change)
    forget(entry[0])
    register_coco_json([entry])
    findings, _ = inspect_datasets(config(test=entry[0]), eval_only=True)
    found = [*findings.errors.values(), *findings.warnings.values()]
    assert any(message in finding.example for finding in found)


def test_an_error_in_train_has_no_echo_in_test(
    error_of, digits_entries, broken_annotations, caplog
):
    name, _, images = digits_entries[0]
    path = broken_annotations(lambda coco: [a.update(bbox=[]) for a in coco["annotations"]])
    error_of(train=(name, path, images))
    assert "that DATASETS.TRAIN has none of" not in caplog.text


def test_the_digits_raise_no_warning_of_their_own(check, caplog):
    with caplog.at_level(logging.WARNING, "detectron2"):
        check()
    assert all(
        "no object of" in r.getMessage() or "classes that" in r.getMessage() for r in caplog.records
    )


def test_one_file_in_two_sets_to_train_on(digits_entries):
    (name, json_file, images), val = digits_entries
    entries = [(name, json_file, images), (f"{name}_again", json_file, images), val]
    forget(*(entry[0] for entry in entries))
    register_coco_json(entries)
    cfg = config(name, val[0])
    cfg.DATASETS.TRAIN = (name, f"{name}_again", name)
    findings, _ = inspect_datasets(cfg)
    (warning,) = [str(x) for (kind, _), x in findings.warnings.items() if kind == "shared"]
    assert f"of {name}_again: 8 of its 8 image files are in {name} too, such as" in warning
    cfg.DATASETS.TRAIN = (name,)
    assert "shared" not in [kind for kind, _ in inspect_datasets(cfg)[0].warnings]


def test_one_file_in_train_and_test(check, digits_entries, caplog):
    _, path, images = digits_entries[1]
    with caplog.at_level(logging.WARNING, "detectron2"):
        check(train=("leaking", path, images))
    assert "4 of its 4 image files are in leaking too" in caplog.text


# ---- empty sets ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda coco: coco["annotations"].clear(), "it has no box to train on: annotate objects"),
        (every(iscrowd=1), "it has no box to train on, since iscrowd (or ignore) is 1 in"),
        (every(bbox=[1, 1, 0, 4]), "it has no box to train on, since none has an area"),
        (lambda coco: (coco["images"].clear(), coco["annotations"].clear()), "it lists no image"),
    ],
)
def test_nothing_to_train_on(error_of, changed, change, message):
    _, path, images = changed(change)
    assert message in error_of(train=("nothing", path, images))


def test_no_image_to_evaluate_on(error_of, changed):
    entry = changed(lambda coco: (coco["images"].clear(), coco["annotations"].clear()))
    assert f"{entry[1]} of {entry[0]}: it lists no image" in error_of(val=entry)


# ---- data sets that are not registered by a config ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation 1 has a segmentation without a polygon"),
        ({"iscrowd": None}, "annotation 1 has iscrowd null, which Detectron2 takes for a crowd"),
        ({"ignore": 1}, "annotation 1 has ignore 1, which Detectron2's loader refuses"),
        ({"id": 2}, "annotation 2 has id 2, as another one has"),
        ({"id": None}, "annotation null has no 'id', which Detectron2's loader needs"),
    ],
)
def test_what_the_loader_of_detectron2_would_lose(changed, fields, message):
    _, path, images = changed(first("annotations", **fields))
    forget("stock")
    register_coco_instances("stock", {}, path, images)
    with pytest.raises(UserError) as error:
        check_datasets(config(train="stock"))
    assert message in str(error.value)
    assert "or let DATASETS.COCO_JSON register it" in str(error.value)


def own_dict(**fields):
    box = {"bbox": [1, 2, 30, 40], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 3}
    image = {"file_name": "a.jpg", "image_id": 7, "height": 50, "width": 60}
    image.update({key: fields.pop(key) for key in list(fields) if key in image})
    return {**image, "annotations": [{**box, **fields}]}


@pytest.mark.parametrize(
    ("dicts", "message"),
    [
        ([own_dict(bbox_mode=None)], "annotation 0 of a.jpg (counted from 0) has bbox_mode None"),
        ([own_dict(bbox_mode=3)], "has bbox_mode 3, not BoxMode.XYXY_ABS or BoxMode.XYWH_ABS"),
        ([own_dict(area="5")], 'has area "5", not a number of pixels'),
        (
            [{"file_name": "b.jpg", "image_id": 8}, own_dict()],
            "the dict of b.jpg has no annotations, though others have",
        ),
        ([own_dict(bbox=[1, 2, 3])], "has bbox [1, 2, 3], not [x1, y1, x2, y2]"),
        ([own_dict(bbox=[9, 2, 3, 4])], "has bbox [9, 2, 3, 4], not [x1, y1, x2, y2]"),
        ([own_dict(category_id=10)], "has category_id 10, not one of 0 to 9"),
        ([own_dict(category_id=-1)], "has category_id -1, not one of 0 to 9"),
        ([own_dict(iscrowd=None)], "has iscrowd null, not 0 or 1"),
        ([own_dict(ignore=1)], "has ignore 1, which nothing reads"),
        ([own_dict(file_name=None)], "dict 0 has file_name null, not a path"),
        ([own_dict(height=0)], "dict 0 (a.jpg) has height 0, not a number of pixels"),
        ([own_dict(image_id=None)], "dict 0 (a.jpg) has image_id null, not a number or a text"),
        ([own_dict(), own_dict()], "dict 1 (a.jpg) has image_id 7, as another one has"),
        ([own_dict(bbox=[70, 2, 80, 9])], "which lies outside its image of 60 x 50 pixels"),
        ([], "the data set own: it lists no image"),
        (None, "the function returns a NoneType: return a list of dicts"),
        (KeyError("boxes"), "the function raises KeyError: 'boxes'"),
    ],
)
def test_dataset_dicts_of_a_function(dicts, message):
    def load():
        if isinstance(dicts, Exception):
            raise dicts
        return dicts

    forget("own")
    DatasetCatalog.register("own", load)
    digits = [str(i) for i in range(10)]
    MetadataCatalog.get("own").set(thing_classes=digits, evaluator_type="coco")
    with pytest.raises(UserError) as error:
        check_datasets(config("own", "own"))
    assert message in str(error.value)


def test_a_set_that_nobody_registered():
    with pytest.raises(UserError, match="did you mean coco_2017_train"):
        check_datasets(config(train="coco_2017_tarin"))


def own_function(dicts, **metadata):
    forget("own")
    DatasetCatalog.register("own", lambda: dicts)
    MetadataCatalog.get("own").set(evaluator_type="coco", **metadata)
    with pytest.raises(UserError) as error:
        check_datasets(config(test="own"), eval_only=True)
    return str(error.value)


def test_what_the_evaluation_of_a_function_lacks(changed):
    assert "its metadata have no thing_classes: set it of" in own_function([own_dict()])
    ids = dict.fromkeys(range(10), 0)
    message = own_function(
        [own_dict()],
        thing_classes=[str(i) for i in range(10)],
        thing_dataset_id_to_contiguous_id=ids,
    )
    assert "does not name every class" in message


def test_a_function_that_returns_other_images_each_time():
    forget("own")
    numbers = iter(range(9))
    DatasetCatalog.register("own", lambda: [own_dict(file_name=f"{next(numbers)}.jpg")])
    MetadataCatalog.get("own").set(thing_classes=[str(i) for i in range(10)])
    with pytest.raises(UserError, match="returns other images, or others first, when it is called"):
        check_datasets(config("own"))


def test_a_function_is_evaluated_by_what_it_returns(changed, tmp_path):
    forget("own")
    DatasetCatalog.register("own", lambda: [own_dict(area=1e11)])
    _, path, _ = changed(lambda coco: None)  # of other images
    MetadataCatalog.get("own").set(
        thing_classes=[str(i) for i in range(10)], evaluator_type="coco", json_file=path
    )
    check_datasets(config(test="own"), eval_only=True)
    coco_evaluator("own", str(tmp_path), 100)
    truth = json.loads((tmp_path / TRUTH_FILE).read_text())
    assert truth["images"] == [{"id": 7, "file_name": "a.jpg"}]
    (annotation,) = truth["annotations"]
    assert (annotation["bbox"], annotation["area"]) == ([1, 2, 29, 38], 29 * 38)


def test_number_of_classes_that_only_a_file_says(changed):
    _, path, images = changed(lambda coco: None)
    forget("stock")
    register_coco_instances("stock", {}, path, images)
    assert num_classes_of(config(train="stock")) == (10, "stock")
    assert check_datasets(config(train="stock"))["stock"].num_images == 4
