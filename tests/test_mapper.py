"""Images and annotations on their way to the model: pixels, errors, regions to ignore."""

import logging
import pickle
import re
import struct

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.data.detection_utils import read_image as detectron2s_read_image
from detectron2.structures import BoxMode
from PIL import Image

from retinanet_plugin import UserError
from retinanet_plugin.data.images.read_image import read_image
from retinanet_plugin.data.loading.mapper import RetinaNetMapper
from retinanet_plugin.data.loading.test_loader import build_test_loader

WIDTH, HEIGHT = 9, 6
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
WORDS = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
EXIF_ORIENTATION = 274


def read(path, image_format="BGR"):
    return read_image({"file_name": str(path)}, image_format)


def write_tiff(path, pixels, sample_format, orientation=1):
    """A TIFF that Pillow does not write; sample formats: 1 unsigned, 2 signed, 3 float."""
    big = pixels.dtype.byteorder == ">"
    order, data = (">", pixels.tobytes()) if big else ("<", pixels.tobytes())
    height, width = pixels.shape
    tags = {256: width, 257: height, 258: 8 * pixels.itemsize, 259: 1, 262: 1, 273: 8,
            274: orientation, 277: 1, 278: height, 279: len(data), 339: sample_format}  # fmt: skip
    entries = b"".join(
        struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items()
    )
    head = (b"MM" if big else b"II") + struct.pack(f"{order}HI", 42, 8 + len(data))
    end = struct.pack(f"{order}I", 0)
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + end)


# ------------------------------------------------------------------ pixels


@pytest.mark.parametrize("image_format", ["BGR", "RGB", "L", "YUV-BT.601"])
@pytest.mark.parametrize(
    ("mode", "extension"),
    [("RGB", "png"), ("RGB", "jpg"), ("L", "png"), ("L", "jpg"), ("RGBA", "png"), ("LA", "png"),
     ("P", "png"), ("1", "png"), ("CMYK", "jpg"), ("CMYK", "tiff"), ("RGB", "bmp")],
)  # fmt: skip
def test_pictures_of_8_bits_are_detectron2s(tmp_path, mode, extension, image_format):
    path = tmp_path / f"picture.{extension}"
    Image.fromarray(NOISE).convert("RGBA" if mode in ("RGBA", "LA") else "RGB").convert(mode).save(
        path
    )
    expected = detectron2s_read_image(str(path), image_format)
    found = read(path, image_format)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpegs_are_turned_as_detectron2_does(tmp_path, orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(NOISE[..., :3]).save(path, exif=exif)
    expected = detectron2s_read_image(str(path), "BGR")
    assert expected.shape[:2] == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))
    assert np.array_equal(read(path), expected)


def test_a_tiff_is_turned_once(tmp_path):
    """Pillow turns it; Detectron2 does so again."""
    path = tmp_path / "turned.tiff"
    write_tiff(path, NOISE[..., 0], sample_format=1, orientation=6)
    assert np.array_equal(read(path, "L")[..., 0], np.rot90(NOISE[..., 0], -1))


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm", "big_endian.tiff"])
def test_16_bits_are_scaled(tmp_path, name):
    path = tmp_path / name
    if name == "big_endian.tiff":
        write_tiff(path, WORDS.astype(">u2"), sample_format=1)
    else:
        cv2.imwrite(str(path), WORDS)
    expected = np.round(WORDS * (255 / 65535))
    for channel in read(path).transpose(2, 0, 1):
        assert np.array_equal(channel, expected)
    assert np.array_equal(read(path, "L")[..., 0], expected)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_pixels_without_a_range_are_those_of_8_bits_or_refused(tmp_path, dtype):
    kind = 3 if dtype == np.float32 else 2
    path = tmp_path / "wide.tiff"
    write_tiff(path, NOISE[..., 0].astype(dtype), kind)
    assert np.array_equal(read(path, "L")[..., 0], NOISE[..., 0])
    wrong = [NOISE[..., 0].astype(dtype) - 300, NOISE[..., 0].astype(dtype) * 2]
    if kind == 3:
        wrong += [(NOISE[..., 0] / 255).astype(dtype), np.full((2, 2), np.nan, dtype)]
    for pixels in wrong:
        write_tiff(path, pixels, kind)
        with pytest.raises(UserError, match=r"wide.tiff .*no known range and values from"):
            read(path)


# ------------------------------------------------------------------ bad images


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = {
    "half.jpg": (cut, r"[Tt]runcated"),
    "half.png": (cut, r"truncated"),
    "empty.png": (lambda path: path.write_bytes(b""), "no type of image that Pillow knows"),
    "text.png": (lambda path: path.write_text("<html>"), "no type of image that Pillow knows"),
    "missing.png": (lambda path: path.unlink(), "No such file or directory"),
    "folder.png": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
}


@pytest.fixture(params=BAD)
def bad(request, tmp_path):
    """The record of an image that cannot be read, and what is said of it."""
    path = tmp_path / request.param
    Image.fromarray(NOISE[..., :3]).save(path)
    spoil, message = BAD[request.param]
    spoil(path)
    return {"file_name": str(path), "image_id": 17, "annotations": []}, message


def sentence(load, *arguments):
    """What the ``UserError`` says that ``load(*arguments)`` raises."""
    said = "no error"
    try:
        load(*arguments)
    except UserError as error:
        said = str(error)
        # Which holds the workers of a loader in a cycle, until they can no longer be told to end.
        error.__traceback__ = None
    assert "\n" not in said
    return said


@pytest.mark.parametrize("is_train", [True, False])
def test_a_bad_image_is_an_error_that_names_it(small_cfg, bad, is_train):
    record, reason = bad
    said = sentence(RetinaNetMapper(small_cfg, is_train), record)
    assert said.startswith(f"the image {record['file_name']} (id 17) cannot be read (")
    assert re.search(reason, said)
    assert said.endswith("or set DATASETS.SKIP_BAD_IMAGES True to leave such images out")


def test_a_huge_image_is_one(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    Image.fromarray(NOISE).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UserError, match=r"huge.png .*more than 40 pixels, Pillow's limit"):
        read(path)


def test_an_image_of_another_size_is_one(small_cfg, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(NOISE).save(path)
    record = {"file_name": str(path), "image_id": "a", "height": HEIGHT, "width": WIDTH}
    mapper = RetinaNetMapper(small_cfg, False)
    assert mapper(record)["width"] == WIDTH
    with pytest.raises(
        UserError, match=r"picture.png \(id a\) is 9 x 6 pixels but .* 9 x 7: correct"
    ):
        mapper({**record, "height": 7})
    with pytest.raises(UserError, match=r"is 9 x 6 pixels, by its EXIF .* for 6 x 9"):
        mapper({**record, "height": WIDTH, "width": HEIGHT})


def test_the_sentence_survives_a_worker(small_cfg, tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(NOISE[..., :3]).save(path)
    cut(path)
    loader = build_detection_test_loader(
        [{"file_name": str(path), "image_id": 5}],
        mapper=RetinaNetMapper(small_cfg, False),
        num_workers=2,
    )
    assert sentence(list, loader).startswith(f"the image {path} (id 5) cannot be read (")


def test_a_bad_image_is_left_out_by_config(small_cfg, bad, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    small_cfg.DATASETS.SKIP_BAD_IMAGES = True
    record, _ = bad
    mapper = RetinaNetMapper(small_cfg, True)
    with caplog.at_level(logging.WARNING, logger="detectron2"):
        assert mapper(record) is None
        assert mapper(record) is None
    (said,) = caplog.records
    assert record["file_name"] in said.message
    assert re.search(r"left out, number \d+: ", said.message)


@pytest.fixture
def logged(tmp_path):
    """``logged()``: what this process and those that load data have logged."""
    handler = logging.FileHandler(tmp_path / "log.txt")
    logging.getLogger("detectron2").addHandler(handler)
    yield (tmp_path / "log.txt").read_text
    logging.getLogger("detectron2").removeHandler(handler)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_evaluation_goes_on_without_it(small_cfg, tmp_path, request, num_workers, logged):
    records = []
    for i in range(5):
        path = tmp_path / f"{i}.jpg"
        Image.fromarray(NOISE[..., :3]).save(path)
        records.append({"file_name": str(path), "image_id": i, "height": HEIGHT, "width": WIDTH})
    for bad in ("2.jpg", "3.jpg"):
        cut(tmp_path / bad)
    name = request.node.name
    DatasetCatalog.register(name, lambda: records)
    small_cfg.DATASETS.TEST = (name,)
    small_cfg.DATALOADER.NUM_WORKERS = num_workers
    assert "2.jpg (id 2)" in sentence(list, build_test_loader(small_cfg, name))
    small_cfg.DATASETS.SKIP_BAD_IMAGES = True
    for _ in range(2):  # evaluations
        found = [x["image_id"] for batch in build_test_loader(small_cfg, name) for x in batch]
        assert sorted(found) == [0, 1, 4]
    # Each is said once, and they have numbers that follow each other.
    numbers = re.findall(r"left out, number (\d+): the image .*/[23].jpg ", logged())
    first, second = sorted(map(int, numbers))
    assert second == first + 1


# ------------------------------------------------------------------ annotations


def annotation(box, **fields):
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0, **fields}


@pytest.fixture
def record(tmp_path):
    """An image of 80 x 60 with two boxes and two regions to ignore, one of them over the edge."""
    path = tmp_path / "picture.png"
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(path)
    boxes = [
        annotation([10, 10, 20, 20]),
        annotation([40, 20, 30, 30], iscrowd=1),
        annotation([30, 30, 10, 10], category_id=2),
        annotation([70, -10, 20, 40], iscrowd=1),
    ]
    return {"file_name": str(path), "height": 60, "width": 80, "image_id": 1, "annotations": boxes}


def test_regions_to_ignore_are_no_boxes_and_are_kept(small_cfg, record):
    small_cfg.INPUT.MIN_SIZE_TEST = 120
    augmentations = build_augmentation(small_cfg, is_train=False)
    mapper = RetinaNetMapper(small_cfg, True, augmentations=augmentations)
    found = mapper(record)
    assert found["image"].shape == (3, 120, 160)
    assert found["instances"].gt_classes.tolist() == [0, 2]
    wanted = torch.tensor([[80.0, 40, 140, 100], [140, 0, 160, 60]])
    assert torch.equal(found["ignore_boxes"].tensor, wanted)
    assert "annotations" in record  # the data set is as it was


def test_without_regions_the_result_is_detectron2s(small_cfg, record):
    small_cfg.INPUT.RANDOM_FLIP = "none"
    small_cfg.INPUT.MIN_SIZE_TRAIN = (60,)
    without = {**record, "annotations": [a for a in record["annotations"] if not a["iscrowd"]]}
    found, expected = (
        mapper(small_cfg, True)(without) for mapper in (RetinaNetMapper, DatasetMapper)
    )
    assert found.keys() == expected.keys()
    assert torch.equal(found["image"], expected["image"])
    found, expected = found["instances"], expected["instances"]
    assert torch.equal(found.gt_boxes.tensor, expected.gt_boxes.tensor)
    assert torch.equal(found.gt_classes, expected.gt_classes)


def test_boxes_of_whole_pixels_are_not_rounded_when_images_are_resized(small_cfg, record):
    # Detectron2 has 13 and 41 here: an IoU of 0.96 with the object.
    small_cfg.INPUT.MIN_SIZE_TEST = 83
    augmentations = build_augmentation(small_cfg, is_train=False)
    mapper = RetinaNetMapper(small_cfg, True, augmentations=augmentations)
    height, width = mapper(record)["image"].shape[1:]
    scale = torch.tensor([width / 80, height / 60] * 2)
    boxes = mapper(record)["instances"].gt_boxes.tensor
    assert torch.allclose(boxes[0], scale * torch.tensor([10.0, 10, 30, 30]))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(("size", "shrink"), [((801, 603), 4), ((403, 300), 2), ((199, 198), 1)])
def test_large_jpegs_are_decoded_smaller(tmp_path, small_cfg, size, shrink, orientation):
    """A white box in black, at its place in what is trained on, in whatever size it was decoded."""
    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), (64, 32, 128, 160))
    picture.save(path, exif=exif, quality=95)
    whole = detectron2s_read_image(str(path), "BGR")
    ys, xs = np.nonzero(whole[..., 0] > 128)
    box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
    height, width = whole.shape[:2]
    record = {"file_name": str(path), "height": height, "width": width}
    small = read_image(dict(record), "BGR", enough=200)
    assert small.shape == (-(-height // shrink), -(-width // shrink), 3)

    small_cfg.INPUT.JPEG_DRAFT, small_cfg.INPUT.RANDOM_FLIP = True, "none"
    small_cfg.INPUT.MIN_SIZE_TRAIN, small_cfg.INPUT.MIN_SIZE_TEST = (150,), 150
    small_cfg.INPUT.MAX_SIZE_TRAIN = small_cfg.INPUT.MAX_SIZE_TEST = 200
    sample = RetinaNetMapper(small_cfg, True)({**record, "annotations": [annotation(box)]})
    (x1, y1, x2, y2) = sample["instances"].gt_boxes.tensor[0].round().int().tolist()
    white = sample["image"][0] > 128
    assert white[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].all()
    assert abs(int(white.sum()) - (x2 - x1) * (y2 - y1)) < 0.15 * int(white.sum())
    with pytest.raises(UserError, match=f"is {width} x {height} pixels"):
        read_image({**record, "width": width + 1}, "BGR", enough=200)


@pytest.mark.parametrize("seed", range(8))
def test_regions_move_with_the_boxes(small_cfg, record, seed):
    """Crops, sizes and flips: the same box as an object and as a region stays the same."""
    small_cfg.INPUT.CROP.ENABLED = True
    small_cfg.INPUT.CROP.SIZE = [0.5, 0.5]
    small_cfg.INPUT.MIN_SIZE_TRAIN = (30, 90)
    boxes = [[5, 5, 15, 15], [30, 20, 30, 30], [70, 50, 10, 10]]
    both = [annotation(box, iscrowd=iscrowd) for box in boxes for iscrowd in (0, 1)]
    np.random.seed(seed)
    found = RetinaNetMapper(small_cfg, True)({**record, "annotations": both})
    expected = found["instances"].gt_boxes.tensor
    regions = found.get("ignore_boxes")
    regions = expected[:0] if regions is None else regions.tensor
    assert torch.equal(regions, expected)


def test_a_mapper_goes_to_a_worker(small_cfg, record):
    mapper = pickle.loads(pickle.dumps(RetinaNetMapper(small_cfg, True)))
    assert len(mapper(record)["ignore_boxes"]) == 2
