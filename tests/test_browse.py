"""Images as the training sees them: which they are, their colours, boxes and foreground anchors."""

import itertools
import logging

import numpy as np
import pytest
import torch
from conftest import ROOT, make_batch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.env import seed_all_rng

from retinanet_plugin.__main__ import main
from retinanet_plugin.commands import browse
from retinanet_plugin.commands.arguments import shown_path
from retinanet_plugin.engine import Trainer
from retinanet_plugin.matching import TaskAlignedMatcher
from retinanet_plugin.report.contact_sheet import STYLES, draw_contact_sheet
from retinanet_plugin.report.seen_images import SeenImage, seen_images

CONFIG = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")


@pytest.fixture
def model(small_cfg):
    return build_model(small_cfg)


def sample(boxes, classes, size=(64, 96), colour=(0, 0, 0), **more):
    """A training input of one colour."""
    instances = Instances(size, gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
    instances.gt_classes = torch.tensor(classes)
    image = torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, *size)
    return {"file_name": "folder/a.jpg", "image": image, "instances": instances, **more}


def test_foreground_anchors_are_the_models(model):
    """Without running it: of images of odd sizes, which are padded to one size."""
    batch = [{**x, "file_name": "a.jpg"} for x in make_batch(5, sizes=((97, 131), (150, 90)))]
    found = list(seen_images([batch], model, "BGR"))
    images = model.preprocess_image(batch)
    with torch.no_grad():
        features = model.backbone(images.tensor)
    anchors = model.anchor_generator([features[name] for name in model.in_features])
    labels, _ = model.label_anchors(anchors, [x["instances"] for x in batch])
    every = torch.cat([boxes.tensor for boxes in anchors])
    for image, labels_of_image, x in zip(found, labels, batch):
        is_foreground = (labels_of_image >= 0) & (labels_of_image < 5)
        assert np.array_equal(image.anchors, every[is_foreground].numpy())
        assert len(image.anchors) > 0
        assert np.array_equal(image.boxes, x["instances"].gt_boxes.tensor.numpy())
        assert np.array_equal(image.classes, x["instances"].gt_classes.numpy())
        assert image.picture.shape[:2] == tuple(x["image"].shape[1:])


def test_a_box_whose_anchors_all_learn_another(model):
    """Of two boxes in one place, anchors take the first."""
    box, other = [20, 20, 52, 52], [60, 4, 90, 40]
    (image,) = seen_images([[sample([box, other, box], [0, 1, 2])]], model, "BGR")
    assert image.has_anchor.tolist() == [True, True, False]


def test_an_image_without_boxes(model):
    empty = sample(np.empty((0, 4)), np.empty(0, int))
    (image,) = seen_images([[empty]], model, "BGR")
    assert image.anchors.shape == image.boxes.shape == image.regions.shape == (0, 4)
    assert captions(draw_contact_sheet([image], ["cat"])) == [
        "a.jpg\n96 x 64 px, 0 boxes\n0 foreground anchors"
    ]


@pytest.mark.parametrize(("image_format", "seen"), [("BGR", (30, 20, 10)), ("RGB", (10, 20, 30))])
def test_colours(model, image_format, seen):
    (image,) = seen_images(
        [[sample([[1, 1, 9, 9]], [0], colour=(10, 20, 30))]], model, image_format
    )
    assert image.picture.shape == (64, 96, 3)
    assert (image.picture == seen).all()


def test_a_matcher_that_goes_by_predictions(model):
    model.matcher.needs_predictions = True
    (image,) = seen_images([[sample([[1, 1, 9, 9]], [0])]], model, "BGR")
    assert image.anchors is None
    assert captions(draw_contact_sheet([image], ["cat"]))[0].splitlines()[1:] == [
        "96 x 64 px, 1 box",
        "foreground anchors depend on what the model predicts",
    ]


def test_a_matcher_that_goes_by_predictions_later(model):
    model.matcher = TaskAlignedMatcher(
        num_classes=model.num_classes,
        box2box_transform=model.inference.box2box_transform,
        first_matcher=model.matcher,
        first_iterations=1,
    )
    boxes = [[1, 1, 33, 33]]
    (image,) = seen_images([[sample(boxes, [0])]], model, "BGR")
    model.matcher = model.matcher.first_matcher
    (expected,) = seen_images([[sample(boxes, [0])]], model, "BGR")
    assert len(image.anchors)
    assert (image.anchors == expected.anchors).all()
    assert (image.at_first, expected.at_first) == (True, False)
    assert captions(draw_contact_sheet([image], ["cat"]))[0].endswith("at first")


def captions(figure):
    return [text.get_text() for text in figure.texts]


def seen(**changes):
    """96 x 64 black pixels with two boxes, one of them without anchor, and a region to ignore."""
    fields = {
        "file_name": "folder/a.jpg",
        "picture": np.zeros((64, 96, 3), np.uint8),
        "boxes": np.array([[10, 10, 30, 30], [50, 20, 80, 50]], np.float32),
        "classes": np.array([0, 1]),
        "regions": np.array([[0, 50, 20, 64]], np.float32),
        "anchors": np.array([[8, 8, 40, 40], [-20, 8, 12, 40], [0, 0, 1, 1]], np.float32),
        "has_anchor": np.array([True, False]),
    }
    return SeenImage(**{**fields, **changes})


def test_sheet():
    """Captions with counts, labels of the boxes, and a legend of what there is."""
    plain = seen(regions=np.empty((0, 4)), anchors=np.empty((0, 4)), has_anchor=np.ones(2, bool))
    figure = draw_contact_sheet([seen(), plain], ["cat", "$1 <b>"])
    assert captions(figure) == [
        "a.jpg\n96 x 64 px, 2 boxes, 1 region to ignore\n3 foreground anchors; 1 box has none",
        "a.jpg\n96 x 64 px, 2 boxes\n0 foreground anchors",
    ]
    assert [text.get_text() for text in figure.axes[0].texts] == ["cat", "$1 <b>"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(STYLES)
    figure = draw_contact_sheet([plain], ["cat", "dog"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["box"]


def test_of_many_anchors_the_best_of_each_box_are_drawn():
    boxes = np.array([[10, 10, 30, 30], [50, 20, 80, 50]], np.float32)
    shifts = np.arange(30)[:, None] / 10
    many = np.concatenate([box + shifts for box in boxes]).astype(np.float32)
    figure = draw_contact_sheet([seen(boxes=boxes, anchors=many)], ["cat", "dog"])
    (drawn,) = [x for x in figure.axes[0].collections if x.get_zorder() == 0.95]
    corners = sorted(path.vertices[0].tolist() for path in drawn.get_paths())
    assert corners == pytest.approx(np.array([[10, 10], [10.1, 10.1], [50, 20], [50.1, 20.1]]))
    assert "60 foreground anchors (2 a box drawn)" in captions(figure)[0]


def test_names_without_a_font_are_numbers():
    """A character for private use is in no font that is looked for."""
    figure = draw_contact_sheet([seen()], ["cat", chr(0xE123)])
    assert [text.get_text() for text in figure.axes[0].texts] == ["cat", "class 1"]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(40, 40), (20, 400), (400, 20), (2000, 3000)])
def test_nothing_of_a_sheet_is_cut_off(count, shape):
    """Pictures, captions and legend are inside the figure, and no caption is on a picture."""
    image = seen(picture=np.zeros((*shape, 3), np.uint8), file_name="W" * 300 + ".jpg")
    figure = draw_contact_sheet([image] * count, ["cat" * 40, "dog"])
    figure.draw_without_rendering()
    frame = figure.bbox
    texts = [text.get_window_extent() for text in figure.texts]
    pictures = [axes.get_window_extent() for axes in figure.axes]
    assert len(texts) == len(pictures) == count
    parts = [*texts, *pictures, figure.legends[0].get_window_extent()]
    for i, part in enumerate(parts):
        assert frame.x0 <= part.x0 < part.x1 <= frame.x1
        assert frame.y0 <= part.y0 < part.y1 <= frame.y1
        assert not any(part.overlaps(other) for other in parts[i + 1 :])


# ------------------------------------------------------------------ the command


@pytest.fixture
def options(digits_entries, tmp_path):
    (train, *_), (val, *_) = digits_entries
    return [
        "DATASETS.COCO_JSON", str([list(entry) for entry in digits_entries]),
        "DATASETS.TRAIN", str((train,)), "DATASETS.TEST", str((val,)),
        "OUTPUT_DIR", str(tmp_path), "SEED", "7",
    ]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """The images of each sheet that the command draws."""
    sheets = []

    def draw(images, class_names):
        sheets.append(images)
        return draw_contact_sheet(images, class_names)

    monkeypatch.setattr(browse, "draw_contact_sheet", draw)
    return sheets


def test_the_images_are_the_first_of_the_training(instant_cfg, options, drawn, tmp_path, capsys):
    instant_cfg.SEED = 7
    seed_all_rng(instant_cfg.SEED)
    trainer = Trainer(instant_cfg)
    batches = trainer.data_loader.batches_from(0, trainer.seed, num_workers=0)
    expected = [x for batch in itertools.islice(batches, 3) for x in batch][:5]
    arguments = ["browse", "--config-file", CONFIG, "--num-images", "5"]
    main([*arguments, "--opts", *options])
    first = (tmp_path / "browse.png").read_bytes()
    assert f"drew 5 images of {instant_cfg.DATASETS.TRAIN[0]}" in capsys.readouterr().out
    for image, x in zip(drawn[0], expected, strict=True):
        assert image.file_name == x["file_name"]
        assert np.array_equal(image.picture[..., ::-1].transpose(2, 0, 1), x["image"])
        assert np.array_equal(image.boxes, x["instances"].gt_boxes.tensor)

    other = tmp_path / "other.png"
    main([*arguments, "--output", str(other), "--opts", *options])
    assert other.read_bytes() == first
    main([*arguments, "--output", str(other), "--opts", *options, "SEED", "8"])
    assert [x.file_name for x in drawn[2]] != [x.file_name for x in drawn[0]]


def test_images_of_an_evaluation(instant_cfg, options, drawn, tmp_path):
    """At the size of evaluations, spread over the set, and never augmented."""
    more = ["INPUT.MIN_SIZE_TEST", "120", "INPUT.MIN_SIZE_TRAIN", "(64,)"]
    arguments = ["browse", "--config-file", CONFIG, "--test", "--num-images", "2"]
    main([*arguments, "--opts", *options, *more])
    assert (tmp_path / "browse_test.png").stat().st_size > 0
    (images,) = drawn
    assert [x.file_name.rsplit("/", 1)[1] for x in images] == ["00001.jpg", "00004.jpg"]
    assert {min(x.picture.shape[:2]) for x in images} == {120}
    assert all(len(x.boxes) and x.has_anchor.all() for x in images)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["DATASETS.TRAIN", "('nowhere',)"], "no data set is registered as 'nowhere'"),
        (["MODEL.RETINANET.MATCHER_NAME", "Nothing"], "MATCHER_NAME"),
        (["--test", "DATASETS.TEST", "()"], "DATASETS.TEST"),
    ],
)
def test_mistakes_are_one_sentence(options, more, message, tmp_path):
    flags = more[:1] if more[0] == "--test" else []
    opts = [*options, *more[len(flags) :]]
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    with pytest.raises(SystemExit, match=rf"error: .*{message}"):
        main(["browse", "--config-file", CONFIG, *flags, "--opts", *opts])
    assert not list(tmp_path.glob("*.png"))


def test_paths_are_shown_from_where_one_is(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert shown_path(str(tmp_path / "here/a/b.png")) == "a/b.png"
    assert shown_path(str(tmp_path / "b.png")) == str(tmp_path / "b.png")
    assert shown_path("a.png") == "a.png"
