"""The page of a plan: whole in one file, names escaped, many classes in sight, no boxes at all."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from retinanet_plugin.errors import UserError
from retinanet_plugin.report.plan import AnchorChoice, Decision, Plan
from retinanet_plugin.report.plan_page import (
    class_rows,
    draw_box_sizes,
    plan_page,
    write_plan_page,
)

HOSTILE = ['<script>alert("1")</script>', "a & b", "'\"><img src=x onerror=y>", "$x_", "\n", "狗"]


class Reader(HTMLParser):
    """Texts, tags with their attributes, and whether each tag that was opened is closed."""

    EMPTY = ("meta", "img")

    def __init__(self, page):
        super().__init__()
        self.texts, self.tags, self.open = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def anchors(names, reached):
    return AnchorChoice(
        sizes={"p3": [32, 40.3, 50.8], "p4": [64, 80.6, 102]},
        aspect_ratios=[0.5, 1, 2],
        reached_by_class=dict.fromkeys(names, reached),
        reached_by_size={"0 to 32 px": math.nan, "from 32 px": reached},
        reached=reached,
    )


def make_plan(names=("cat", "dog"), num_boxes=20, **changes):
    sizes = {name: np.full((num_boxes, 2), 32.0 + i) for i, name in enumerate(names)}
    fields = {
        "title": "Plan for pets",
        "facts": [("images", "1,234")],
        "decisions": [Decision("SOLVER.MAX_ITER", "4000", "an hour")],
        "class_counts": {name: num_boxes + i for i, name in enumerate(names)},
        "box_sizes": sizes,
        "resized_box_sizes": sizes,
        "anchors_before": anchors(names, 0.25),
        "anchors_after": anchors(names, 0.875),
    }
    return Plan(**{**fields, **changes})


def test_one_file_that_asks_nothing_of_a_network():
    sheet = Figure(figsize=(2, 1), dpi=100)
    page = Reader(plan_page(make_plan(sheet=sheet)))
    pictures = [attributes["src"] for attributes in page.all("img")]
    assert [picture.split(";")[0] for picture in pictures] == [
        "data:image/svg+xml",
        "data:image/jpeg",
    ]
    decoded = [base64.b64decode(picture.split(",")[1]) for picture in pictures]
    assert b"<svg" in decoded[0]
    assert Image.open(io.BytesIO(decoded[1])).size == (200, 100)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "a"})
    assert not any("href" in attributes for _, attributes in page.tags)
    assert "url(" not in plan_page(make_plan())


def test_what_it_says():
    texts = Reader(plan_page(make_plan(commands=[("Train", "python train_net.py")]))).texts
    for text in ("1,234", "SOLVER.MAX_ITER", "4000", "an hour", "python train_net.py", "cat", "21"):
        assert text in texts
    assert texts.count("25.0 %") == texts.count("87.5 %") == 4  # a size, all, two classes
    assert "0 to 32 px" not in texts  # there are none


def test_where_there_is_nothing_to_remark_nothing_is_said():
    assert "Warnings and notes" not in plan_page(make_plan())
    texts = Reader(plan_page(make_plan(remarks=["one", "two"]))).texts
    assert texts[texts.index("Warnings and notes") + 1 :][:2] == ["one", "two"]


def test_bars_are_as_long_as_their_shares():
    page = plan_page(make_plan())
    for kind, width in (("before", 25), ("after", 87.5)):
        found = re.findall(rf'class="{kind}" style="width:([\d.]+)%"', page)
        assert list(map(float, found)) == [width] * 4
    counts = re.findall(r'class="bar" style="width:([\d.]+)%"', page)
    assert list(map(float, counts)) == [100, 95.24]  # 21 and 20 boxes


def test_names_are_text_whatever_they_are():
    plan = make_plan(
        HOSTILE,
        title=HOSTILE[0],
        facts=[(HOSTILE[0], HOSTILE[2])],
        decisions=[Decision(*HOSTILE[:3])],
        remarks=[f"warning: {name}" for name in HOSTILE],
        commands=[(HOSTILE[2], HOSTILE[0])],
    )
    page = Reader(plan_page(plan))
    assert not page.all("script")
    assert len(page.all("img")) == 1
    assert all("onerror" not in attributes for _, attributes in page.tags)
    for name in HOSTILE:
        assert name.strip() in [*page.texts, ""]
        assert f"warning: {name}".strip() in page.texts


def test_many_classes():
    """Thirty in sight, those with most boxes; the others one click away."""
    names = [f"class {i}" for i in range(200)]
    page = plan_page(make_plan(names))
    in_sight, others = page.split("<details>")
    assert "170 other classes, 17,765 boxes" in others  # 20 + 21 + ... + 189
    assert all(f">class {i}<" in in_sight for i in range(170, 200))
    assert ">class 169<" not in in_sight
    assert all(f">class {i}<" in others for i in range(170))
    Reader(page)
    assert "<details>" not in plan_page(make_plan(names[:30]))


def test_classes_come_by_their_boxes():
    rows = class_rows(make_plan(class_counts={"a": 5, "b": 20, "new": 0}, names=("a", "b")))
    assert [(row.name, row.share) for row in rows] == [("b", 1), ("a", 0.25), ("new", 0)]
    assert math.isnan(rows[2].before)


@pytest.mark.parametrize("num_boxes", [0, 1])
def test_hardly_any_boxes(num_boxes):
    texts = Reader(plan_page(make_plan(num_boxes=num_boxes))).texts
    assert texts[texts.index("cat") + 1] == str(num_boxes)
    page = Reader(plan_page(make_plan(names=(), num_boxes=num_boxes)))
    assert "cat" not in page.texts
    assert len(page.all("img")) == 1  # the histogram


def test_boxes_without_an_area_are_not_drawn():
    sizes = {"cat": np.array([[0, 5], [np.nan, 3], [-2, 3], [np.inf, 1], [4, 9], [1e-3, 1e-3]])}
    figure = draw_box_sizes(make_plan(("cat",), box_sizes=sizes, resized_box_sizes=sizes))
    assert sum(bar.get_height() for bar in figure.axes[0].containers[0]) == 2


def test_boxes_are_counted_where_they_are():
    figure = draw_box_sizes(make_plan(("cat",), num_boxes=7))  # of 32 x 32 pixels
    bars = [bar for bar in figure.axes[0].containers[0] if bar.get_height()]
    assert [(bar.get_x(), bar.get_height()) for bar in bars] == [(pytest.approx(32), 7)]


def test_the_same_plan_gives_the_same_page():
    pages = {plan_page(make_plan(sheet=Figure(figsize=(1, 1)))) for _ in range(2)}
    assert len(pages) == 1


def test_written_whole_in_spite_of_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "new" / "plan.html"
    write_plan_page(str(path), make_plan(title="a\udcffb"))
    assert "a?b" in path.read_text(encoding="utf-8")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        write_plan_page(str(tmp_path / "file" / "plan.html"), make_plan())
