"""Pictures of detections beside truth: what counts as found, colours, places of the labels."""

from dataclasses import replace
from itertools import combinations

import cv2
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.colors import to_hex

from retinanet_plugin.errors import UserError
from retinanet_plugin.report.detections.pictures import IGNORED, STYLES, draw_pairs
from retinanet_plugin.report.detections.shown_boxes import ShownBox
from retinanet_plugin.report.drawing import (
    SKY_BLUE,
    add_axes,
    draw_boxes,
    evenly_spread,
    new_figure,
    pixels_of,
    save_figure,
    show_picture,
)
from retinanet_plugin.report.label_places import place_labels
from retinanet_plugin.report.names import shortened, text_options

# How people who lack one kind of cones see linear RGB (Machado, Oliveira and Fernandes 2009).
SIGHTS = {
    "all cones": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def overlap(a, b):
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


@pytest.mark.parametrize(
    "boxes",
    [
        [(40, 40, 60, 60)],
        [(0, 0, 20, 20), (80, 0, 100, 20), (0, 80, 20, 100), (80, 80, 100, 100)],  # the corners
        [(0, 0, 100, 100), (0, 0, 100, 100), (1, 1, 99, 99)],  # the whole frame
        [(40, 40, 60, 60)] * 6,
        [(-20, 90, 5, 140), (99, 50, 130, 60)],  # beyond the frame
        [(48, 50, 52, 54), (50, 55, 54, 59)],  # smaller than their labels
    ],
)
def test_labels_stay_in_the_frame_and_apart(boxes):
    size = (30, 10)
    places = place_labels(boxes, [size] * len(boxes), (100, 100))
    for x1, y1, x2, y2 in places:
        assert (x2 - x1, y2 - y1) == pytest.approx(size)
        assert min(x1, y1) >= 0
        assert max(x2, y2) <= 100
    assert not any(overlap(a, b) for a, b in combinations(places, 2))


def test_a_label_hides_no_box_where_it_need_not():
    boxes = [(30, 40, 60, 60), (30, 20, 60, 39)]  # the second is where the first's label would go
    for place in place_labels(boxes, [(30, 10)] * 2, (100, 100)):
        assert not any(overlap(place, box) for box in boxes)


def test_labels_without_room_are_left_out_the_last_first():
    assert place_labels([(0, 0, 30, 20)] * 3, [(30, 10)] * 3, (30, 20)).count(None) == 1
    assert place_labels([(0, 0, 30, 20)] * 3, [(30, 10)] * 3, (30, 20))[2] is None
    assert place_labels([(0, 0, 30, 20)], [(31, 10)], (30, 20)) == [None]


def test_labels_of_a_crowd_leave_the_picture_to_be_seen():
    """Ten labels have room, and would take 30 %; one alone may take more than its share."""
    boxes = [(0, 10 * i, 30, 10 * i + 10) for i in range(10)]
    places = place_labels(boxes, [(30, 10)] * 10, (100, 100), room=0.25)
    assert [place is None for place in places] == [False] * 8 + [True] * 2
    assert None not in place_labels(boxes[:1], [(90, 40)], (100, 100), room=0.25)


def linear_rgb(colour):
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("kind", STYLES)
def test_lines_show_on_any_background(kind):
    """By WCAG, 3:1 is the contrast that graphics need; the line or the black under it has it."""
    luminance = linear_rgb(STYLES[kind][0]) @ [0.2126, 0.7152, 0.0722]
    background = np.linspace(0, 1, 1001)
    black = (background + 0.05) / 0.05
    line = (luminance + 0.05) / (background + 0.05)
    assert np.maximum(np.maximum(line, 1 / line), black).min() > 3


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize(
    "kinds",
    [
        *combinations(("truth, found", "truth, missed", "region to ignore"), 2),
        *combinations(("hit", "false alarm", "ignored"), 2),
    ],
)
def test_colours_of_one_picture_are_told_apart(kinds, sight):
    """A CIELAB difference of 2.3 can just be seen; the lines differ as well."""
    seen = np.clip([SIGHTS[sight] @ linear_rgb(STYLES[kind][0]) for kind in kinds], 0, 1)
    gamma = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    first, second = cv2.cvtColor(gamma.astype(np.float32)[None], cv2.COLOR_RGB2LAB)[0]
    assert np.linalg.norm(first - second) > 20
    assert STYLES[kinds[0]][1] != STYLES[kinds[1]][1]


TRUTH = ShownBox("truth", [10, 10, 40, 15], "cat", 0.9)
HIT = ShownBox("hit", [10, 10, 40, 15], "cat 0.90", 0.9)


def picture(folder, name="a", shape=(60, 90, 3)):
    """A grey picture, as a record."""
    path = str(folder / f"{name}.png")
    cv2.imwrite(path, np.full(shape, 128, np.uint8))
    return {"file_name": path}


def test_pictures_of_any_shape(tmp_path):
    """A wide and a tall picture, one without a box; a label that has no room is counted."""
    images = [picture(tmp_path, "wide", (30, 90, 3)), picture(tmp_path, "tall", (90, 30, 3))]
    _, unlabelled = draw_pairs(images, [[TRUTH, HIT], []], score_thresh=0.5)
    assert unlabelled == 0
    long = [replace(box, label="cat" * 50) for box in (TRUTH, HIT)]
    figure, unlabelled = draw_pairs(images, [long, long], score_thresh=0.5)
    assert unlabelled == 2  # in the tall one
    save_figure(figure, str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("score_thresh", "left", "right"),
    [(0.5, "truth, found", "hit"), (0.95, "truth, missed", None)],
)
def test_what_is_found_depends_on_the_threshold(tmp_path, score_thresh, left, right):
    figure, _ = draw_pairs([picture(tmp_path)], [[TRUTH, HIT]], score_thresh)
    for axes, kind in zip(figure.axes, (left, right)):
        drawn = [to_hex(lines.get_edgecolor()[0]).upper() for lines in axes.collections]
        assert drawn == (["#000000", STYLES[kind].colour] if kind else [])


def test_an_image_may_have_no_truth(tmp_path):
    false_alarm = replace(HIT, kind="false")
    figure, _ = draw_pairs([picture(tmp_path)], [[false_alarm]], 0.5)
    assert len(figure.axes[0].collections) == 0
    assert len(figure.axes[1].collections) == 2  # of a false alarm, and the black under it


def test_regions_to_ignore_have_a_legend_where_there_are_some(tmp_path):
    image, drawn = picture(tmp_path), {}
    for kind in ("truth", "region"):
        region = ShownBox(kind, [10, 10, 40, 40], "cat", 2)
        ignored = ShownBox("ignored", [15, 15, 20, 20], "cat 0.90", 0.9)
        drawn[kind], _ = draw_pairs([image], [[region, ignored]], score_thresh=0.5)
    entries = {i: {text.get_text() for text in f.legends[0].get_texts()} for i, f in drawn.items()}
    assert entries["region"] == set(STYLES)
    assert entries["truth"] == set(STYLES) - set(IGNORED)
    figure = drawn["region"]
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert [patch.get_xy()[:4].tolist() for patch in hatched] == [
        [[10, 10], [50, 10], [50, 50], [10, 50]]
    ]
    figure.savefig(tmp_path / "figure.png")
    above = max(axes.get_window_extent().y1 for axes in figure.axes)
    assert figure.legends[0].get_window_extent().y0 >= above


@pytest.mark.parametrize(("width", "height"), [(100, 80), (50, 40), (2000, 1600)])
def test_lines_are_where_the_box_is(width, height):
    """In a figure of 100 x 80 pixels, whatever size the picture has: pixel i is from i to i + 1."""
    figure = new_figure(1, 0.8)
    axes = add_axes(figure, 0, 0, 1, 0.8)
    show_picture(axes, np.full((height, width, 3), 200, np.uint8))
    box = np.array([20, 10, 70, 60]) * width / 100
    thin = SKY_BLUE._replace(width=1.44, has_shadow=False)  # points: two pixels
    draw_boxes(axes, [box], ["hit"], [], {"hit": thin})
    is_grey = (pixels_of(figure) == 200).all(axis=2)
    expected = np.ones((80, 100), bool)
    expected[9:61, 19:71] = False  # both pixels that meet at an edge
    expected[11:59, 21:69] = True
    assert np.array_equal(is_grey, expected)


def test_boxes_at_the_border_have_whole_lines():
    """What leaves a picture is cut off at its border; the line there has its full width."""
    figure = new_figure(2, 1.6)
    axes = add_axes(figure, 0.5, 0.4, 1, 0.8)
    show_picture(axes, np.full((80, 100, 3), 200, np.uint8))
    draw_boxes(axes, [(-30, -30, 130, 130)], ["hit"], [], {"hit": SKY_BLUE})
    changed = (pixels_of(figure) < 190).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (37, 122, 47, 152)


def test_many_boxes_have_thinner_lines():
    shares = []
    for count in (1, 41):
        figure = new_figure(1, 1)
        axes = add_axes(figure, 0, 0, 1, 1)
        show_picture(axes, np.full((100, 100, 3), 200, np.uint8))
        draw_boxes(axes, [(20, 20, 80, 80)] * count, ["hit"] * count, [], {"hit": SKY_BLUE})
        shares.append((pixels_of(figure) != 200).any(axis=2).mean())
    assert shares[1] < 0.7 * shares[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "cat"),
        ("a\nb\tc  d", "a b c d"),
        ("x" * 30 + "y" * 10, "x" * 18 + "…" + "y" * 9),
        ("", ""),
        ("$5 and $6", "$5 and $6"),
    ],
)
def test_names_are_shortened_to_one_line(name, expected):
    assert shortened(name) == expected
    assert len(expected) <= 28


def test_names_are_no_formulas(tmp_path):
    """Matplotlib reads what stands between dollars as TeX, and fails where it is none."""
    box = replace(TRUTH, label=r"$\frac{$ <b>")
    figure, unlabelled = draw_pairs([picture(tmp_path)], [[box]], score_thresh=0.5)
    assert unlabelled == 0
    assert [text.get_text() for text in figure.axes[0].texts] == [r"$\frac{$ <b>"]
    pixels_of(figure)


def test_fonts_are_those_that_are_here():
    """Another one would be a warning for each text."""
    families = text_options()["fontfamily"]
    assert families[0] == "DejaVu Sans"
    assert set(families) <= set(font_manager.get_font_names())


def test_a_file_that_is_no_picture_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"--output .*notes\.doc does not end in a type of picture"):
        save_figure(new_figure(1, 1), str(tmp_path / "notes.doc"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("num_images", "number", "expected"),
    [(10, 4, [0, 3, 6, 9]), (3, 8, [0, 1, 2]), (1, 2, [0]), (5, 1, [0])],
)
def test_images_are_spread(num_images, number, expected):
    assert evenly_spread(num_images, number) == expected
