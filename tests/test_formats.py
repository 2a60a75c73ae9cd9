"""Annotation files of known tools: conventions, which format it is, one sentence otherwise."""

import json

import numpy as np
import pytest
from PIL import Image

from retinanet_plugin.data.formats import read_dataset
from retinanet_plugin.errors import UserError

VOC_XML = """<annotation><filename>{name}</filename>
<size><width>100</width><height>50</height><depth>3</depth></size>{objects}</annotation>"""
VOC_OBJECT = """<object><name>{label}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def image(path, size=(100, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 60, 30)).save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def voc(*boxes, label="cat", difficult=0, name="a.jpg"):
    objects = [VOC_OBJECT.format(*box, label=label, difficult=difficult) for box in boxes]
    return VOC_XML.format(name=name, objects="".join(objects))


def coco(names, **annotation):
    """A file of images with a box in the first one."""
    return {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names, 1)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]} | annotation
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }


def boxes_of(dataset):
    """{file name: [(label, x1, y1, x2, y2)]}."""
    return {
        x.file_name.rpartition("/")[2]: [tuple(box)[:5] for box in x.boxes] for x in dataset.images
    }


def message(path, image_folder=None):
    with pytest.raises(UserError) as error:
        read_dataset(str(path), image_folder and str(image_folder))
    text = str(error.value)
    assert "\n" not in text
    return text


# ------------------------------------------------------------------ YOLO


def yolo(folder, lines, names="[cat, dog]", **more):
    image(folder / "images/a.jpg")
    image(folder / "images/b.jpg")
    write(folder / "labels/a.txt", lines)
    keys = {"train": "images", "names": names} | more
    return write(folder / "data.yaml", "".join(f"{k}: {v}\n" for k, v in keys.items()))


def test_yolo_numbers_are_centre_and_size_in_shares_of_the_image(tmp_path):
    yolo(tmp_path, "0 0.5 0.5 0.2 0.4\n\n1.0 0.1 0.1 0.2 0.2\n")
    dataset = read_dataset(str(tmp_path))
    cat, dog = boxes_of(dataset)["a.jpg"]
    assert cat == pytest.approx(("cat", 40, 15, 60, 35))
    assert dog == pytest.approx(("dog", 0, 0, 20, 10))
    assert boxes_of(dataset)["b.jpg"] == []
    (note,) = dataset.notes
    assert note.startswith("1 image has no label file, which means: no objects; the first is ")
    assert note.endswith("images/b.jpg")
    assert (dataset.images[0].width, dataset.images[0].height) == (100, 50)


def test_yolo_polygons_and_poses_give_boxes(tmp_path):
    yolo(tmp_path / "polygon", "1 0.1 0.2 0.5 0.9 0.3 0.1")
    assert boxes_of(read_dataset(tmp_path / "polygon"))["a.jpg"][0] == pytest.approx(
        ("dog", 10, 5, 50, 45)
    )
    yolo(tmp_path / "pose", "0 0.5 0.5 0.2 0.4 0.1 0.1 2 0.2 0.2 1", kpt_shape="[2, 3]")
    assert boxes_of(read_dataset(tmp_path / "pose"))["a.jpg"][0] == pytest.approx(
        ("cat", 40, 15, 60, 35)
    )


@pytest.mark.parametrize("names", ["[cat, dog]", "{0: cat, 1: dog}", "{1: dog, 0: cat}"])
def test_yolo_names_are_a_list_or_numbered(tmp_path, names):
    path = yolo(tmp_path, "1 0.5 0.5 1 1", names=names)
    assert read_dataset(str(path)).class_names == ["cat", "dog"]


def test_a_byte_order_mark_is_no_part_of_a_yaml(tmp_path):
    path = yolo(tmp_path, "1 0.5 0.5 1 1")
    path.write_text("\ufeff" + path.read_text())
    assert read_dataset(tmp_path).num_boxes == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 0.5 0.5 0.2", r"line 2 of .*labels/a.txt has 4 numbers: write class, x and y"),
        (
            "0 0.5 0.5 0.2 0.4 0.9",
            "has 6 numbers, as detections with a score have: remove the last",
        ),
        ("2 0.5 0.5 0.2 0.4", 'has the class "2", but the names are of 0 to 1'),
        ("0.5 0.5 0.5 0.2 0.4", 'has the class "0.5"'),
        ("0 50 0.5 0.2 0.4", "has the number 50, not one of 0 to 1"),
        ("0 0.5 0.5 -0.2 0.4", "has the number -0.2"),
        ("0 0.5 nan 0.2 0.4", 'has "nan": write a number'),
        ("cat 0.5 0.5 0.2 0.4", 'has the class "cat": write a number'),
    ],
)
def test_yolo_lines_that_are_not_so(tmp_path, line, expected):
    yolo(tmp_path, f"0 0.5 0.5 0.2 0.4\n{line}\n")
    with pytest.raises(UserError, match=expected):
        read_dataset(tmp_path)


def test_yolo_label_without_image_and_images_without_labels(tmp_path):
    yolo(tmp_path, "0 0.5 0.5 0.2 0.4")
    stray = write(tmp_path / "labels/gone.txt", "0 0.5 0.5 0.2 0.4")
    assert f"the label file {stray} has no image" in message(tmp_path)
    stray.unlink()
    (tmp_path / "labels/a.txt").unlink()
    assert "no image has a label file, such as" in message(tmp_path)


def test_yolo_label_without_image_beside_others(tmp_path):
    image(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", "\n0 0.5 0.5 0.2 0.4")
    write(tmp_path / "classes.txt", "cat")
    write(tmp_path / "README.txt", "made by hand")
    write(tmp_path / "results.txt", "12 34 56")
    assert read_dataset(tmp_path).num_boxes == 1
    write(tmp_path / "b.heic", "")
    stray = write(tmp_path / "b.txt", "0 0.5 0.5 0.2 0.4")
    assert f"the label file {stray} has no image" in message(tmp_path)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"nc": 3}, "has nc 3, but 2 names"),
        ({"names": "[cat, cat]"}, "has the name cat twice"),
        ({"names": "{1: cat, 2: dog}"}, "number them from 0 on"),
        ({"names": "[yes, no]"}, "a name that YAML reads as True: write it in quotation marks"),
        ({"path": "gone", "train": "x"}, "there is no .*/gone/x and no .*/x: correct or remove it"),
        ({"names": "3"}, "has names 3: list the names"),
        ({"train": "gone"}, "has train: gone, but there is no"),
        ({"names": "[cat"}, "is not YAML"),
    ],
)
def test_yolo_yaml_that_is_not_so(tmp_path, keys, expected):
    path = yolo(tmp_path, "0 0.5 0.5 0.2 0.4", **keys)
    with pytest.raises(UserError, match=expected):
        read_dataset(str(path))


def test_yolo_label_files_of_capital_letters(tmp_path):
    yolo(tmp_path, "1 0.5 0.5 1 1")
    (tmp_path / "labels/a.txt").rename(tmp_path / "labels/a.TXT")
    assert read_dataset(tmp_path).num_boxes == 1


def test_yolo_splits_lists_and_roboflows_paths(tmp_path):
    for name in ("train", "valid"):
        image(tmp_path / name / "images" / f"{name}.jpg")
        write(tmp_path / name / "labels" / f"{name}.txt", "0 0.5 0.5 0.2 0.4")
    path = write(
        tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnames: [cat]\n"
    )
    assert {x.split for x in read_dataset(path).images} == {"train", "val"}
    path.write_text(path.read_text() + "test: ../test/images\n")  # where there is none
    assert "has test: ../test/images, but there is no" in read_dataset(path).notes[0]
    write(tmp_path / "list.txt", "./train/images/train.jpg\n")
    write(path, "path: .\ntrain: list.txt\nnames: [cat]\n")
    assert list(boxes_of(read_dataset(path))) == ["train.jpg"]
    write(tmp_path / "list.txt", "data/train/images/train.jpg\n")  # as CVAT and darknet write
    assert list(boxes_of(read_dataset(path))) == ["train.jpg"]
    write(tmp_path / "list.txt", "train/images/gone.jpg\n")
    assert "line 1 of" in message(path)


@pytest.mark.parametrize(
    ("image_file", "label"),
    [("images/a.jpg", "labels/a.txt"), ("a.jpg", "a.txt"), ("obj_train_data/a.jpg",) * 2,
     ("images/train/a.jpg", "labels/train/a.txt"), ("train/images/a.jpg", "train/labels/a.txt")],
)  # fmt: skip
def test_yolo_folders_without_yaml(tmp_path, image_file, label):
    image(tmp_path / image_file)
    write((tmp_path / label).with_suffix(".txt"), "0 0.5 0.5 0.2 0.4")
    assert "no data.yaml and no classes.txt: write" in message(tmp_path)
    write(tmp_path / "classes.txt", "cat\n")
    dataset = read_dataset(tmp_path)
    assert dataset.class_names == ["cat"]
    assert dataset.num_boxes == 1
    assert dataset.images[0].split == ("train" if "train/" in image_file else "")


def test_yolo_pictures_where_nothing_is_labelled_are_no_background(tmp_path):
    yolo(tmp_path, "0 0.5 0.5 0.2 0.4")
    image(tmp_path / "plots/result.png")
    (tmp_path / "data.yaml").unlink()
    write(tmp_path / "classes.txt", "cat\n")
    dataset = read_dataset(tmp_path)
    assert sorted(boxes_of(dataset)) == ["a.jpg", "b.jpg"]
    assert dataset.notes[0].startswith(
        "1 image is left out, in folders where none has a label file"
    )
    assert dataset.notes[0].endswith("plots/result.png")


@pytest.mark.parametrize("name", ["my.names", "obj/_darknet.labels", "labels.txt"])
def test_yolo_class_names_in_other_files(tmp_path, name):
    image(tmp_path / "obj/a.jpg")
    write(tmp_path / "obj/a.txt", "1 0.5 0.5 0.2 0.4")
    write(tmp_path / name, "cat\ndog\n")
    assert read_dataset(tmp_path).class_names == ["cat", "dog"]


def test_yolo_folders_of_different_classes_are_not_one_data_set(tmp_path):
    for part, names in (("one", "cat\ndog\n"), ("two", "dog\ncat\n")):
        image(tmp_path / part / f"{part}.jpg")
        write(tmp_path / part / f"{part}.txt", "0 0.5 0.5 0.2 0.4")
        write(tmp_path / part / "classes.txt", names)
    assert "one/classes.txt and" in message(tmp_path)
    assert "name one of their folders" in message(tmp_path)
    assert read_dataset(tmp_path / "two").class_names == ["dog", "cat"]


def test_yolo_labels_with_the_images_elsewhere(tmp_path):
    image(tmp_path / "pictures/a.jpg")
    write(tmp_path / "mine/a.txt", "0 0.5 0.5 0.2 0.4")
    write(tmp_path / "mine/classes.txt", "cat\n")
    assert read_dataset(tmp_path / "mine", tmp_path / "pictures").num_boxes == 1


# ------------------------------------------------------------------ Pascal VOC


def test_voc_counts_from_1_and_the_last_pixel_belongs_to_a_box(tmp_path):
    image(tmp_path / "JPEGImages/a.jpg")
    write(tmp_path / "Annotations/a.xml", voc((1, 1, 100, 50), (11, 21, 30, 40.5)))
    expected = [("cat", 0, 0, 100, 50), ("cat", 10, 20, 30, 40.5)]
    assert boxes_of(read_dataset(tmp_path))["a.jpg"] == expected


def test_voc_that_counts_from_0_is_noticed(tmp_path):
    image(tmp_path / "a.jpg")
    write(tmp_path / "a.xml", voc((0, 5, 10, 20), (11, 21, 30, 40)))
    dataset = read_dataset(tmp_path)
    assert boxes_of(dataset)["a.jpg"] == [("cat", 0, 5, 10, 20), ("cat", 11, 21, 30, 40)]
    assert "begin before pixel 1" in dataset.notes[0]


@pytest.mark.parametrize(
    ("annotations", "images"),
    [("", ""), ("annots", "images"), ("annotations", "images"), ("train", "train"),
     ("VOCdevkit/VOC2007/Annotations", "VOCdevkit/VOC2007/JPEGImages")],
)  # fmt: skip
def test_voc_folders(tmp_path, annotations, images):
    image(tmp_path / images / "a.png")
    # The name in the file is of an earlier state, as it often is.
    write(tmp_path / annotations / "a.xml", voc((1, 1, 2, 2), difficult=1, name="000.jpg"))
    for path in (tmp_path, tmp_path / annotations):
        dataset = read_dataset(path)
        assert list(boxes_of(dataset)) == ["a.png"]
        assert dataset.images[0].boxes[0].ignored
    assert dataset.images[0].split == ("train" if annotations == "train" else "")


def voc_with_lists(folder, stems, **lists):
    for stem in stems:
        image(folder / f"JPEGImages/{stem}.jpg")
        write(folder / f"Annotations/{stem}.xml", voc((1, 1, 2, 2)))
    for name, text in lists.items():
        write(folder / f"ImageSets/Main/{name}.txt", text)
    return folder


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"train": "b\n", "val": "a\n"}, ["val", "train", ""]),
        ({"train": "\ufeffa\r\nb\r\n", "val": "\ufeffc"}, ["train", "train", "val"]),
        ({"trainval": "a\nb", "test": "c"}, ["train", "train", "test"]),
        ({"trainval": "a\nb", "train": "a", "test": "c"}, ["train", "val", "test"]),
        ({"trainval": "a\nb", "val": "a"}, ["val", "train", ""]),
        ({"trainval": "a\nb\nc"}, ["", "", ""]),
        (
            {"train": "JPEGImages/a.jpg\n", "val": "b  1\nAnnotations/c.xml"},
            ["train", "val", "val"],
        ),
    ],
)
def test_voc_lists_say_the_split(tmp_path, lists, expected):
    dataset = read_dataset(voc_with_lists(tmp_path, "abc", **lists))
    assert [x.split for x in dataset.images] == expected
    assert dataset.notes == []


def test_voc_lists_of_names_that_are_not_there(tmp_path):
    voc_with_lists(tmp_path, ["my cat", "b"], train="my cat\ngone\n", val="b\n")
    dataset = read_dataset(tmp_path)
    assert [x.split for x in dataset.images] == ["val", "train"]
    (note,) = dataset.notes
    assert note.startswith("1 name has no XML file in")
    assert note.endswith("of 2 in " + str(tmp_path / "ImageSets/Main/train.txt; the first is gone"))
    (tmp_path / "ImageSets/Main/val.txt").write_text("b\n", "utf-16")
    assert "val.txt cannot be read" in message(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("<width>100</width>", "", r"a.xml has width null in its size"),
        ("<width>100</width>", "<width>90</width>", "has 100 x 50 pixels, but width 90"),
        ("<name>cat</name>", "", "has an object 1 without a name: write its class"),
        ("<xmin>3</xmin>", "<xmin>x</xmin>", "write xmin, ymin, xmax, ymax in pixels"),
        ("<xmin>3</xmin>", "<xmin>30</xmin>", r'with the bndbox \["30", "4", "9", "8"\]'),
        ("</annotation>", "", "is not XML"),
        ("object>", "Object>", "has <Object>, which is not read: write <object>"),
    ],
)
def test_voc_that_is_not_so(tmp_path, old, new, expected):
    image(tmp_path / "a.jpg")
    write(tmp_path / "a.xml", voc((3, 4, 9, 8)).replace(old, new))
    with pytest.raises(UserError, match=expected):
        read_dataset(tmp_path)


# ------------------------------------------------------------------ LabelMe


def labelme(*shapes, **keys):
    shapes = [{"label": "cat", "shape_type": kind, "points": points} for kind, points in shapes]
    return {"shapes": shapes, "imagePath": "a.jpg", "imageHeight": 50, "imageWidth": 100} | keys


def test_labelme_shapes_give_their_bounding_boxes(tmp_path):
    image(tmp_path / "a.jpg")
    shapes = [
        ("rectangle", [[30, 40], [10, 20]]),  # drawn from the lower right
        ("polygon", [[1, 2], [9, 5], [4, 8]]),
        ("circle", [[50, 25], [53, 29]]),  # centre and a point on it: radius 5
        ("mask", [[10, 10], [19, 14]]),  # first and last pixel
        ("point", [[1, 1]]),
    ]
    write(tmp_path / "a.json", labelme(*shapes))
    dataset = read_dataset(tmp_path)
    expected = [(10, 20, 30, 40), (1, 2, 9, 8), (45, 20, 55, 30), (10, 10, 20, 15)]
    assert [box[1:] for box in boxes_of(dataset)["a.jpg"]] == expected
    assert dataset.notes == ["1 shape that is a point or line was left out: they have no area"]


def test_labelme_parts_of_a_group_are_one_object(tmp_path):
    image(tmp_path / "a.jpg")
    content = labelme(*[("rectangle", [[x, 0], [x + 5, 5]]) for x in (0, 20, 40)])
    content["shapes"][0]["group_id"] = content["shapes"][2]["group_id"] = 7
    write(tmp_path / "a.json", content)
    assert [box[1:] for box in boxes_of(read_dataset(tmp_path))["a.jpg"]] == [
        (0, 0, 45, 5),
        (20, 0, 25, 5),
    ]


def test_labelme_paths_of_another_machine(tmp_path):
    image(tmp_path / "images/a.jpg")
    write(tmp_path / "labels/a.json", labelme(("rectangle", [[0, 0], [5, 5]])))
    for image_path in ("..\\images\\a.jpg", "C:\\Users\\me\\a.jpg", "/home/me/a.jpg", "a.jpg"):
        path = write(
            tmp_path / "labels/a.json",
            labelme(("rectangle", [[0, 0], [5, 5]]), imagePath=image_path),
        )
        assert list(boxes_of(read_dataset(path))) == ["a.jpg"]
    (tmp_path / "images/a.jpg").rename(tmp_path / "images/b.jpg")
    assert f"{path} names the image a.jpg, which is not in" in message(tmp_path)


@pytest.mark.parametrize(
    ("shape", "keys", "expected"),
    [
        (("rectangle", [[1, 2]]), {}, r"shape 0 of .*a.json .* has points \[\[1, 2\]\]"),
        (("rectangle", [[1, 2], [3]]), {}, r"has the point \[3\]: write \[x, y\]"),
        (("rectangle", [[1, 2], [3, "x"]]), {}, 'has y "x": write a number'),
        (("cuboid", [[1, 2], [3, 4]]), {}, 'has shape_type "cuboid": draw one of rectangle'),
        (("rectangle", [[1, 2], [3, 4]]), {"imagePath": None}, "has imagePath null"),
        (("rectangle", [[1, 2], [3, 4]]), {"imageWidth": 2.5}, "has imageWidth 2.5"),
        (("rectangle", [[1, 2], [3, 4]]), {"shapes": 3}, "has no list 'shapes'"),
    ],
)
def test_labelme_that_is_not_so(tmp_path, shape, keys, expected):
    image(tmp_path / "a.jpg")
    write(tmp_path / "a.json", labelme(shape, **keys))
    with pytest.raises(UserError, match=expected):
        read_dataset(tmp_path)


# ------------------------------------------------------------------ CreateML


def createml(label="cat", **coordinates):
    coordinates = {"x": 50, "y": 20, "width": 10, "height": 30} | coordinates
    return [{"image": "a.jpg", "annotations": [{"label": label, "coordinates": coordinates}]}]


def test_createml_files_of_splits_are_one_data_set(tmp_path):
    box = {"label": "cat", "coordinates": {"x": 20, "y": 20, "width": 10, "height": 8}}
    for split in ("train", "valid"):
        image(tmp_path / split / f"{split}.jpg")
        entry = {"image": f"{split}.jpg", "annotations": [box]}
        write(tmp_path / split / "_annotations.createml.json", [entry])
    assert [x.split for x in read_dataset(tmp_path).images] == ["train", "val"]


def test_createml_coordinates_are_centre_and_size_in_pixels(tmp_path):
    image(tmp_path / "a.jpg")
    path = write(tmp_path / "_annotations.createml.json", createml())
    assert boxes_of(read_dataset(path)) == {"a.jpg": [("cat", 45, 5, 55, 35)]}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"label"', '"name"', r"annotation 0 of entry 0 of .* has no 'label'"),
        ('"image"', '"file"', "entry 0 of .* has no 'image'"),
        ('"width"', '"w"', "coordinates of annotation 0 .* has no 'width'"),
        ("10", "-10", "has width -10, height 30"),
        ("50", "null", "has x null: write a number"),
        ('"cat"', '""', 'has label "": write the name of a class'),
        ('"a.jpg"', "3", "has the image 3"),
    ],
)
def test_createml_that_is_not_so(tmp_path, old, new, expected):
    image(tmp_path / "a.jpg")
    path = write(tmp_path / "a.json", json.dumps(createml()).replace(old, new))
    with pytest.raises(UserError, match=expected):
        read_dataset(path)


# ------------------------------------------------------------------ CSV


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,1,2,30,40,cat\nb.jpg,,,,,\n",  # keras-retinanet
        "filename,width,height,class,xmin,ymin,xmax,ymax\n"
        "a.jpg,100,50,cat,1,2,30,40\nb.jpg,100,50,,,,,\n",  # TensorFlow's tutorials
        "image_path,xmin,ymin,xmax,ymax,label\na.jpg,1,2,30,40,cat\nb.jpg,0,0,0,0,cat\n",
        "\ufeffxmin;ymin;xmax;ymax;label;image\n1;2;30;40;cat;a.jpg\n0;0;0;0;;b.jpg\n",
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
        "a,x,cat,1,0.01,0.3,0.04,0.8,0\nb,x,,1,0,0,0,0,0\n",  # Open Images
        "cat,1,2,29,38,a.jpg,100,50\n,0,0,0,0,b.jpg,100,50\n",  # makesense.ai
        "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\n"
        "cat,1,2,29,38,a.jpg,100,50\ncat,0,0,0,0,b.jpg,100,50\n",
    ],
)
def test_csv_tables(tmp_path, text):
    image(tmp_path / "images/a.jpg")
    image(tmp_path / "images/b.jpg")
    boxes = boxes_of(read_dataset(write(tmp_path / "boxes.csv", text)))
    assert boxes["a.jpg"] == [pytest.approx(("cat", 1, 2, 30, 40))]
    assert boxes["b.jpg"] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg,1,2,3,4,cat\na.jpg,1,2,3,cat\n", "line 2 of .* has 5 columns, but the first line"),
        ("a.jpg,1,2,3,4,cat\na.jpg,5,2,3,4,cat\n", "line 2 of .* has x2 3, which is less than"),
        ("a.jpg,1,2,3,4,cat\na.jpg,1,2,3,x,cat\n", 'line 2 of .* has y2 "x": write a number'),
        ("a.jpg,1,2,3,4,cat\na.jpg,1,2,3,4,\n", 'line 2 of .* has the class ""'),
        ("a.jpg,1,2,3,4,cat\n,1,2,3,4,cat\n", "line 2 of .* names no image"),
        (
            "cat,1,2,-3,4,a.jpg,9,9\n",
            r"has bbox_x \+ bbox_width -2, which is less than its bbox_x 1",
        ),
        ("a.jpg,0.1,0.2,0.3,0.4,cat\n", r"all boxes of .* are in the first pixel"),
        ("image,xmin,ymin,xmax,label\na.jpg,1,2,3,cat\n", "has no column for y2 in its first line"),
        ("image,xmin,ymin,xmax,ymax\na.jpg,1,2,3,4\n", "has no column for label"),
        ("image,xmin,ymin,xmax,ymax,label\n", "has no row below the names"),
    ],
)
def test_csv_that_is_not_so(tmp_path, text, expected):
    image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=expected):
        read_dataset(write(tmp_path / "boxes.csv", text))


_TF_COLUMNS = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (_TF_COLUMNS + "a.jpg,200,100,cat,1,2,30,40\n", "but width 200 and height 100 in its anno"),
        ("cat,1,2,29,38,a.jpg,200,100\n", "but width 200 and height 100 in its annotations"),
        (
            _TF_COLUMNS + "a.jpg,100,50,cat,1,2,30,40\na.jpg,99,50,cat,1,2,30,40\n",
            "line 3 of .* says that a.jpg has 99 x 50 pixels, but a line before says 100 x 50",
        ),
        (_TF_COLUMNS + "a.jpg,x,50,cat,1,2,30,40\na.jpg,,,cat,1,2,30,40\n", 'has width "x": write'),
    ],
)
def test_csv_sizes_are_those_of_the_image_files(tmp_path, text, expected):
    image(tmp_path / "a.jpg", (100, 50))
    with pytest.raises(UserError, match=expected):
        read_dataset(write(tmp_path / "boxes.csv", text))


def test_csv_width_and_height_of_boxes_are_no_sizes_of_images(tmp_path):
    image(tmp_path / "a.jpg", (100, 50))
    text = "image,xmin,ymin,xmax,ymax,width,height,label\na.jpg,1,2,30,40,29,38,cat\n"
    path = write(tmp_path / "boxes.csv", f"{text}a.jpg,5,5,20,20,15,15,cat\n")
    assert len(boxes_of(read_dataset(path))["a.jpg"]) == 2


@pytest.mark.parametrize(
    "rows",
    [
        ["a.jpg,29,38,cat,1,2,30,40", "a.jpg,31,38,cat,1,2,30,40", "a.jpg,29,38,cat,1,2,30,40"],
        ["a.jpg,0,0,cat,1,2,30,40", "a.jpg,nan,,cat,1,2,30,40"],
    ],
    ids=["of boxes, one of them rounded otherwise", "not known"],
)
def test_csv_sizes_that_are_none_of_the_images(rows, tmp_path):
    image(tmp_path / "a.jpg")
    path = write(tmp_path / "a.csv", _TF_COLUMNS + "\n".join(rows) + "\n")
    assert read_dataset(path).num_boxes == len(rows)


def test_csv_in_another_encoding_is_told(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_bytes("image,xmin,ymin,xmax,ymax,label\na.jpg,1,2,3,4,caf\xe9\n".encode("latin-1"))
    assert "save it as CSV in UTF-8" in message(path)


def test_via_csv(tmp_path):
    image(tmp_path / "a.jpg")
    shapes = [
        {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4},
        {"name": "circle", "cx": 10, "cy": 10, "r": 2.5},
        {"name": "ellipse", "cx": 10, "cy": 10, "rx": 4, "ry": 2},
        {"name": "polygon", "all_points_x": [1, 5, 3], "all_points_y": [2, 9, 4]},
        {"name": "point", "cx": 1, "cy": 1},
    ]
    header = "filename,file_size,file_attributes,region_count,region_id,"
    lines = [header + "region_shape_attributes,region_attributes"]
    for i, shape in enumerate(shapes):
        cell = json.dumps(shape).replace('"', '""')
        lines.append(f'a.jpg,1,{{}},5,{i},"{cell}","{{""class"":""cat""}}"')
    dataset = read_dataset(write(tmp_path / "via.csv", "\n".join(lines)))
    expected = [(1, 2, 4, 6), (7.5, 7.5, 12.5, 12.5), (6, 8, 14, 12), (1, 2, 5, 9)]
    assert [box[1:] for box in boxes_of(dataset)["a.jpg"]] == expected
    broken = lines[1].replace('""name"": ""rect""', '""name"": ""blob""')
    path = write(tmp_path / "via.csv", f"{lines[0]}\n{broken}")
    assert "line 2 of" in message(path)
    assert 'has a shape "blob"' in message(path)


# ------------------------------------------------------------------ COCO and the places of images


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("train/_annotations.coco.json", "train"),  # Roboflow
        ("annotations/instances_default.json", "images"),  # CVAT
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("coco.json", "."),
        ("coco.json", "JPEGImages"),
    ],
)
def test_coco_finds_its_images(tmp_path, annotations, images):
    image(tmp_path / images / "a.jpg")
    image(tmp_path / "val2017/a.jpg")  # another one of this name
    write(tmp_path / annotations, coco(["a.jpg"]))
    dataset = read_dataset(tmp_path)
    assert dataset.images[0].file_name == str((tmp_path / images / "a.jpg").resolve())
    assert dataset.image_folder == str((tmp_path / images).resolve())
    assert dataset.images[0].boxes == [("cat", 1, 2, 4, 6, False)]
    assert dataset.images[0].split == ("train" if "train" in annotations else "")


def test_coco_files_of_splits_are_one_data_set(tmp_path):
    for name in ("train", "val"):
        image(tmp_path / name / "1.jpg")
        write(tmp_path / f"annotations/{name}.json", coco(["1.jpg"], iscrowd=int(name == "val")))
    dataset = read_dataset(tmp_path)
    assert [(x.split, x.boxes[0].ignored) for x in dataset.images] == [
        ("train", False),
        ("val", True),
    ]
    write(tmp_path / "annotations/other.json", coco(["1.jpg"]))
    assert "both" in message(tmp_path)


def test_a_split_without_images_is_none(tmp_path):
    image(tmp_path / "train/a.jpg")
    write(tmp_path / "train/_annotations.coco.json", coco(["a.jpg"]))
    write(tmp_path / "test/_annotations.coco.json", coco([]) | {"annotations": []})
    assert list(boxes_of(read_dataset(tmp_path))) == ["a.jpg"]


@pytest.mark.parametrize("group", ["animals", "cat"])
def test_roboflows_group_of_classes_is_none(tmp_path, group):
    image(tmp_path / "a.jpg")
    groups = [
        {"id": 0, "name": group, "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": group},
        {"id": 2, "name": "dog", "supercategory": group},  # a class, even without boxes
    ]
    path = write(tmp_path / "coco.json", coco(["a.jpg"]) | {"categories": groups})
    dataset = read_dataset(path)
    assert dataset.class_names == ["cat", "dog"]
    assert f'the category "{group}" has no box and groups others' in dataset.notes[0]
    write(path, coco(["a.jpg"], category_id=0) | {"categories": groups[:2]})
    if group == "animals":
        assert read_dataset(path).class_names == ["animals", "cat"]
    else:
        assert "as another one has: give every category a name of its own" in message(path)


def test_file_names_that_no_format_can_hold(tmp_path):
    image(tmp_path / "a\nb.jpg")
    path = write(tmp_path / "coco.json", coco(["a\nb.jpg"]))
    assert "control characters in its name" in message(path)


def test_images_that_are_in_two_places_are_not_guessed(tmp_path):
    for name in ("train", "val"):
        image(tmp_path / name / "1.jpg")
    path = write(tmp_path / "all.json", coco(["1.jpg"]))
    assert "have images of these names: name the image folder" in message(path)
    assert read_dataset(path, tmp_path / "val").images[0].file_name.endswith("val/1.jpg")


def test_images_whose_names_have_other_capital_letters_are_told(tmp_path):
    image(tmp_path / "images/a.JPG")
    path = write(tmp_path / "coco.json", coco(["a.jpg"]))
    assert f"though {tmp_path}/images/a.JPG is there (1 of 1 images are missing)" in message(path)


def test_missing_images_are_named_and_counted(tmp_path):
    image(tmp_path / "images/a.jpg")
    path = write(tmp_path / "coco.json", coco(["a.jpg", "b.jpg", "c.jpg"]))
    text = message(path)
    place = f"which is not in {tmp_path}/images (2 of 3 images are missing)"
    assert f"{path} names the image b.jpg, {place}: put them there, name their folder" in text
    assert "is not a folder: correct its path" in message(path, tmp_path / "gone")


def write_40_as(kind, folder):
    """A data set of 40 images; returns what to read."""
    names = [f"{i:02}.jpg" for i in range(40)]
    for name in names:
        image(folder / "images" / name)
        if kind == "voc":
            write(folder / name.replace("jpg", "xml"), voc((1, 2, 9, 8), name=name))
        elif kind == "yolo":
            write(folder / "labels" / name.replace("jpg", "txt"), "0 0.5 0.5 0.2 0.4")
    if kind == "coco":
        return write(folder / "all.json", coco(names))
    if kind == "csv":
        return write(folder / "all.csv", "".join(f"{name},1,2,9,8,cat\n" for name in names))
    if kind == "yolo":
        write(folder / "classes.txt", "cat")
    return folder


@pytest.mark.parametrize("kind", ["coco", "csv", "voc", "yolo"])
def test_few_images_that_were_deleted_are_left_out_and_noted(tmp_path, kind):
    path = write_40_as(kind, tmp_path)
    for name in ("07.jpg", "31.jpg"):
        (tmp_path / "images" / name).unlink()
    dataset = read_dataset(path)
    assert len(dataset.images) == 38
    assert dataset.image_folder == f"{tmp_path}/images"
    (note,) = [note for note in dataset.notes if "left out of 40" in note]
    assert note.startswith("2 ")
    assert "07." in note
    (tmp_path / "images/12.jpg").unlink()
    assert "3 of 40" in message(path)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[10, 5, 30, 5, 30, 20], [10, 8, 12, 25, 11, 9]],
        {"size": [50, 100], "counts": [505, 20, *[30, 20] * 19, 3525]},  # columns 10 to 29
        {"size": [50, 100], "counts": "i?d0n00000000000000000000000000000000000000W]3"},
    ],
)
def test_coco_without_boxes_gets_those_of_polygons_and_masks(tmp_path, segmentation):
    image(tmp_path / "a.jpg")
    content = coco(["a.jpg"], segmentation=segmentation)
    for bbox in (None, [0, 0, 0, 0], "none"):
        content["annotations"][0]["bbox"] = bbox
        if bbox == "none":
            del content["annotations"][0]["bbox"]
        dataset = read_dataset(write(tmp_path / "coco.json", content))
        assert boxes_of(dataset)["a.jpg"] == [("cat", 10, 5, 30, 25)]
        assert dataset.notes == ["1 annotation has no box: that of its polygon or mask was taken"]


@pytest.mark.parametrize("segmentation", [[], [[1, 2, 3]], {"size": [5, 5]}, "abc", [["x", "y"]]])
def test_coco_without_boxes_and_without_polygons_is_told(tmp_path, segmentation):
    image(tmp_path / "a.jpg")
    content = coco(["a.jpg"], segmentation=segmentation)
    del content["annotations"][0]["bbox"]
    path = write(tmp_path / "coco.json", content)
    assert "annotation 1 (a.jpg) has" in message(path)
    assert "no 'bbox'" in message(path)


def test_coco_that_is_not_so_is_named_by_its_entry(tmp_path):
    image(tmp_path / "a.jpg")
    path = write(tmp_path / "coco.json", coco(["a.jpg"], bbox=[1, 2, 3]))
    assert "annotation 1 (a.jpg) has bbox [1, 2, 3]" in message(path)
    write(path, coco(["a.jpg", "a.jpg"]))
    assert "names a.jpg twice" in message(path)


def test_a_damaged_image_costs_nothing_if_its_size_is_known(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (50, 100, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    write(tmp_path / "a.xml", voc((3, 4, 9, 8)))
    assert "1 image is damaged" in read_dataset(tmp_path).notes[0]
    (tmp_path / "a.xml").unlink()
    path = write(tmp_path / "coco.json", coco(["a.jpg"]))
    assert "a.jpg cannot be decoded" in message(path)


# ------------------------------------------------------------------ which format it is


def test_no_format_and_no_path(tmp_path):
    assert "does not exist: name an annotation file or a folder" in message(tmp_path / "gone")
    assert "looked for a COCO or CreateML file" in message(tmp_path)
    image(tmp_path / "a.jpg")
    write(tmp_path / "a.md", "")
    assert message(tmp_path).endswith("and found 1 image, 1 .md")
    assert "is of no known format" in message(write(tmp_path / "x.json", '{"a": 1}'))


def test_two_formats_are_told_with_what_to_name(tmp_path):
    image(tmp_path / "a.jpg")
    path = write(tmp_path / "coco.json", coco(["a.jpg"]))
    write(tmp_path / "xml/a.xml", voc((1, 1, 9, 9)))
    text = message(tmp_path)
    assert f"name one of them, {path} (COCO) or {tmp_path}/xml (Pascal VOC)" in text
    assert read_dataset(path).format == "COCO"
    assert read_dataset(tmp_path / "xml").format == "Pascal VOC"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.xml", "<annotations><image/></annotations>", "export it from CVAT as COCO 1.0"),
        ("a.json", '{"_via_img_metadata": {"shape_attributes": 1}}', "export it from VIA as CSV"),
        ("a.xml", "<annotation><imagesize/></annotation>", "is CVAT's XML for LabelMe"),
        ("a.json", '[{"annotations": [{"result": []}], "image": 1}]', "Label Studio"),
        ("a.json", '[{"image": "a.jpg", "label": [], "annotator": 1}]', "Label Studio"),
        (
            "a.json",
            '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]',
            "is detections in COCO",
        ),
        (
            "a.json",
            '[{"name": "a.jpg", "labels": [{"box2d": {"x1": 1}}]}]',
            "is BDD100K's own JSON",
        ),
        ("metadata.jsonl", '{"file_name": "a.jpg", "objects": {}}', "is Hugging Face's metadata"),
        ("a.jpg.json", '{"objects": [{"classTitle": "cat"}], "size": {}}', "from Supervisely as"),
    ],
)
def test_formats_that_are_known_but_not_read(tmp_path, name, content, expected):
    assert expected in message(write(tmp_path / name, content))
    assert expected in message(tmp_path)


def test_a_table_of_other_columns_is_told(tmp_path):
    path = write(tmp_path / "a.csv", "filename,x,y,width,height,class\na.jpg,1,2,3,4,cat\n")
    for place in (path, tmp_path):
        assert 'a.csv begins with "filename, x, y, width, height, class"' in message(place)
    assert "write image_path,xmin,ymin,xmax,ymax,label into its first line" in message(path)
    write(path, "")
    assert "a.csv has no known columns of boxes: write image_path,xmin" in message(path)


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.xml"])
def test_another_encoding_is_told(tmp_path, name):
    (tmp_path / name).write_text("image_path,xmin,ymin,xmax,ymax,label\n", "utf-16")
    for place in (tmp_path, tmp_path / name):
        assert f"{name} is in UTF-16, as Excel and Windows write texts: save" in message(place)


def test_labels_that_are_nearly_yolo_are_told(tmp_path):
    image(tmp_path / "images/a.jpg")
    write(tmp_path / "labels/a.txt", "cat 0.5 0.5 0.2 0.4\n")
    text = message(tmp_path)
    assert 'labels/a.txt is "cat 0.5 0.5 0.2 0.4": write the number of the class' in text
    write(tmp_path / "log.csv", "epoch,loss\n1,0.5\n")  # is not meant as annotations
    assert message(tmp_path) == text
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.4\n", "utf-16")
    assert "labels/a.txt is in UTF-16" in message(tmp_path)


@pytest.mark.parametrize("suffix", [".xml", ".json"])
def test_empty_files_of_images_are_told(tmp_path, suffix):
    labelme = {"shapes": [{"label": "cat", "points": [[1, 2], [4, 6], [4, 2]]}]}
    labelme |= {"imagePath": "a.jpg", "imageWidth": 100, "imageHeight": 50}
    image(tmp_path / "a.jpg")
    write(tmp_path / f"a{suffix}", voc((2, 3, 4, 6)) if suffix == ".xml" else labelme)
    assert len(read_dataset(tmp_path).images) == 1
    write(tmp_path / f"b{suffix}", "")
    write(tmp_path / f"c{suffix}", "")
    assert f"b{suffix} is empty, cut off or of another kind (1 more like it), and" in message(
        tmp_path
    )


@pytest.mark.parametrize("content", ["\n", "\ufeff", '<?xml version="1.0"?>\n<an', "<project/>"])
def test_xml_that_is_no_annotation_is_not_left_out(tmp_path, content):
    write(tmp_path / "a.xml", voc((2, 3, 4, 6)))
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    write(tmp_path / "b.xml", content)
    assert "b.xml is empty, cut off or of another kind, and lies among" in message(tmp_path)
    (tmp_path / "b.xml").unlink()
    write(tmp_path / "notes/b.xml", content)  # in another folder, it is of no image
    assert read_dataset(tmp_path).images


def test_links_in_a_circle_end(tmp_path):
    yolo(tmp_path, "0 0.5 0.5 0.2 0.4")
    (tmp_path / "images/again").symlink_to(tmp_path)
    assert len(read_dataset(tmp_path).images) == 2


@pytest.mark.parametrize(
    "files",
    [
        ("config.yaml", "plan.html"),
        ("config.yaml", "log.txt"),
        ("annotations.json", "predictions.json"),
        ("report.html", "report.json"),
    ],
)
def test_what_this_package_wrote_is_no_part_of_the_data(tmp_path, files):
    image(tmp_path / "a.jpg")
    write(tmp_path / "coco.json", coco(["a.jpg"]))
    for name in files:
        write(tmp_path / "plan" / name, "")
    own = write(tmp_path / "plan/annotations/train.json", coco([str(tmp_path / "a.jpg")]))
    assert len(read_dataset(tmp_path).images) == 1
    (tmp_path / "plan" / files[0]).unlink()
    text = message(tmp_path)
    assert str(own) in text
    assert "are both annotations (COCO): name one" in text


def test_no_box_at_all(tmp_path):
    image(tmp_path / "a.jpg")
    path = write(tmp_path / "coco.json", coco(["a.jpg"]) | {"annotations": []})
    assert "has no box in any image" in message(path)
