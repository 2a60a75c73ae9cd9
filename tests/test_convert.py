"""python -m retinanet_plugin convert: the same boxes in every format, and back."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from retinanet_plugin.__main__ import main
from retinanet_plugin.data.formats import (
    FORMATS,
    AnnotatedImage,
    AnnotatedImages,
    Box,
    read_dataset,
    write_dataset,
)
from retinanet_plugin.errors import UserError

ENDINGS = {"coco": ".json", "createml": ".json", "csv": ".csv"}
MARKS_IGNORED = ("coco", "voc")
NO_FOLDER_NEEDED = ("csv", "labelme", "voc", "yolo")  # whose files say where the images are


@pytest.fixture
def dataset(tmp_path):
    """Six images of three sizes in two folders, the last one without objects; four classes."""
    rng = np.random.default_rng(0)
    names = ["zebra", "a cat", "Käse", "7"]
    images = []
    for i in range(6):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = [(333, 200), (640, 481), (97, 1203)][i % 3]
        Image.new("RGB", (width, height)).save(path)
        boxes = []
        for _ in range(5 * (i < 5)):
            x, y = np.sort(rng.uniform(0, width, 2)), np.sort(rng.uniform(0, height, 2))
            corners = [float(v) for v in (x[0], y[0], x[1], y[1])]
            boxes.append(Box(names[rng.integers(4)], *corners, ignored=bool(rng.random() < 0.2)))
        images.append(AnnotatedImage(str(path), boxes, width, height))
    images[0].boxes[:2] = [Box("7", 0, 0, 333, 200), Box("zebra", 10, 20, 11, 22)]  # whole pixels
    return AnnotatedImages("made here", names, images)


def by_name(dataset):
    """{real path of the image: (width, height, boxes)}."""
    return {os.path.realpath(x.file_name): (x.width, x.height, x.boxes) for x in dataset.images}


def assert_same(found, expected):
    """Same images, sizes, labels, flags; corners to 1e-3 of a pixel."""
    found, expected = by_name(found), by_name(expected)
    assert found.keys() == expected.keys()
    for name, (*size, boxes) in expected.items():
        assert [*found[name][:2]] == size
        others = found[name][2]
        assert [(b.label, b.ignored) for b in others] == [(b.label, b.ignored) for b in boxes]
        corners = np.array([b[1:5] for b in boxes]).reshape(-1, 4)
        assert (
            np.abs(np.array([b[1:5] for b in others]).reshape(-1, 4) - corners).max(initial=0)
            < 1e-3
        )


def without_ignored(dataset):
    images = [replace(x, boxes=[b for b in x.boxes if not b.ignored]) for x in dataset.images]
    return dataset.with_images(images)


@pytest.mark.parametrize("file_format", FORMATS)
def test_round_trips(dataset, tmp_path, file_format):
    path = str(tmp_path / f"out{ENDINGS.get(file_format, '')}")
    written = write_dataset(dataset, path, file_format)
    folder = None if file_format in NO_FOLDER_NEEDED else str(tmp_path / "pictures")
    found = read_dataset(path, folder)
    expected = dataset if file_format in MARKS_IGNORED else without_ignored(dataset)
    assert_same(found, expected)
    assert_same(written, expected)
    assert any("to be ignored" in note for note in written.notes) == (expected is not dataset)
    ordered = file_format in ("coco", "yolo")  # the others list no classes
    assert found.class_names == (dataset.class_names if ordered else sorted(dataset.class_names))


def test_a_chain_of_all_formats_gives_the_first_boxes(dataset, tmp_path):
    expected = found = without_ignored(dataset)
    for i, file_format in enumerate((*FORMATS, "coco")):
        path = str(tmp_path / f"step{i}{ENDINGS.get(file_format, '')}")
        write_dataset(found, path, file_format)
        needs_folder = file_format not in NO_FOLDER_NEEDED
        found = read_dataset(path, found.image_folder if needs_folder else None)
    assert_same(found, expected)


def test_what_supervision_reads_of_ours(dataset, tmp_path):
    sv = pytest.importorskip("supervision")
    flat = tmp_path / "flat"
    flat.mkdir()
    for image in dataset.images:
        path = flat / os.path.basename(image.file_name)
        os.rename(image.file_name, path)
        image.file_name = str(path)
    clean = without_ignored(dataset)
    paths = {f: str(tmp_path / f"{f}{ENDINGS.get(f, '')}") for f in FORMATS}
    for file_format, path in paths.items():
        write_dataset(clean, path, file_format)
    yolo, voc, images = paths["yolo"], paths["voc"], str(flat)
    read = {
        "coco": sv.DetectionDataset.from_coco(images, paths["coco"]),
        "yolo": sv.DetectionDataset.from_yolo(
            f"{yolo}/images", f"{yolo}/labels", f"{yolo}/data.yaml"
        ),
        "voc": sv.DetectionDataset.from_pascal_voc(f"{voc}/JPEGImages", f"{voc}/Annotations"),
        "labelme": sv.DetectionDataset.from_labelme(images, paths["labelme"]),
        "createml": sv.DetectionDataset.from_createml(images, paths["createml"]),
    }
    expected = by_name(clean)
    for file_format, theirs in read.items():
        assert len(theirs) == len(expected)
        for path, _, detections in theirs:
            boxes = expected[os.path.realpath(path)][2]
            labels = [theirs.classes[i] for i in detections.class_id]
            assert labels == [box.label for box in boxes], file_format
            corners = np.array([box[1:5] for box in boxes]).reshape(-1, 4)
            assert np.abs(detections.xyxy - corners).max(initial=0) < 1e-3, file_format


def test_splits_are_kept_by_folders_and_said_of_files(dataset, tmp_path):
    for i, image in enumerate(dataset.images):
        image.split = "val" if i < 2 else "train"
    for file_format in ("yolo", "voc"):
        path = str(tmp_path / file_format)
        write_dataset(dataset, path, file_format)
        found = {os.path.realpath(x.file_name): x.split for x in read_dataset(path).images}
        assert found == {x.file_name: x.split for x in dataset.images}
    written = write_dataset(dataset, str(tmp_path / "a.json"), "coco")
    assert "train, val and test are in one file" in written.notes[-1]


@pytest.mark.parametrize("file_format", ["yolo", "voc"])
def test_boxes_end_at_the_border_where_the_format_wants_it(dataset, tmp_path, file_format):
    dataset.images[0].boxes[:] = [Box("7", -5, 3, 400, 20), Box("7", -9, 3, -2, 20)]
    dataset.images[1:] = [dataset.images[5]]
    path = str(tmp_path / "out")
    notes = write_dataset(dataset, path, file_format).notes
    assert "1 box outside of its image was left out" in notes
    assert f"1 box that leaves its image was cut at the border, as {file_format} wants it" in notes
    found = {os.path.basename(x.file_name): x.boxes for x in read_dataset(path).images}
    assert [b[1:5] for b in found["0.png"]] == [pytest.approx((0, 3, 333, 20))]


def test_names_that_two_images_share(dataset, tmp_path):
    images = dataset.images[:2]
    os.rename(images[1].file_name, tmp_path / "pictures/b/0.png")
    images[1].file_name = str(tmp_path / "pictures/b/0.png")
    write_dataset(dataset.with_images(images), str(tmp_path / "yolo"), "yolo")
    assert sorted(os.listdir(tmp_path / "yolo/images")) == ["a_0.png", "b_0.png"]
    Image.new("RGB", (333, 200)).save(tmp_path / "pictures/a/0.jpg")
    twin = replace(images[0], file_name=str(tmp_path / "pictures/a/0.jpg"))
    alike = dataset.with_images([images[0], twin])
    for file_format in ("voc", "labelme"):
        with pytest.raises(UserError, match=r"two images|2 images would be called"):
            write_dataset(alike, str(tmp_path / file_format), file_format)
        assert not [name for name in os.listdir(tmp_path) if name.startswith(file_format)]


def test_classes_that_are_hardly_to_be_told_apart(dataset, tmp_path):
    dataset.class_names[1] = "Zebra "
    dataset.images[1].boxes[0] = dataset.images[1].boxes[0]._replace(label="Zebra ", ignored=False)
    for image in dataset.images:
        image.boxes = [b._replace(label="Zebra ") if b.label == "a cat" else b for b in image.boxes]
    notes = write_dataset(dataset, str(tmp_path / "a.csv"), "csv").notes
    assert 'the classes "zebra" and "Zebra " differ in capital letters or blanks alone' in notes[-1]


# ------------------------------------------------------------------ the command


@pytest.fixture
def source(dataset, tmp_path):
    path = tmp_path / "pictures.json"
    path.write_text(json.dumps(dataset.to_coco()))
    return str(path)


def test_the_command_says_what_it_read_and_wrote(dataset, source, tmp_path, capsys):
    images = str(tmp_path / "pictures")
    target = str(tmp_path / "out")
    main(["convert", source, target, "--format", "yolo", "--images", images])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"read COCO: {source}, images in {images}"
    assert lines[1].startswith("note: ")
    assert f"wrote yolo: {target}, 6 images, 1 of them without objects" in lines
    counts = without_ignored(dataset).boxes_per_class()
    assert lines[-4:] == [f"  {name}: {n} boxes" for name, n in counts.items()]
    with pytest.raises(SystemExit, match=rf"error: {target} has files, such as data\.yaml"):
        main(["convert", source, target, "--format", "yolo", "--images", images])


def test_the_ending_tells_the_format(source, tmp_path, capsys):
    images = str(tmp_path / "pictures")
    for ending, key in ((".createml.json", '"coordinates"'), (".json", '"categories"')):
        target = tmp_path / f"out{ending}"
        main(["convert", source, str(target), "--images", images])
        assert key in target.read_text()
    with pytest.raises(SystemExit, match="/out does not tell the format to write: add"):
        main(["convert", source, str(tmp_path / "out"), "--images", images])


def test_a_mistake_in_the_source_leaves_nothing(source, tmp_path):
    (tmp_path / "pictures/a/0.png").unlink()
    with pytest.raises(SystemExit, match=r"error: .* names the image a/0.png, which is not in"):
        main(["convert", source, str(tmp_path / "out.csv")])
    assert not os.path.exists(tmp_path / "out.csv")
