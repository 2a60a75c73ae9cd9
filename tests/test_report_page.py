"""python -m retinanet_plugin report: the files that it writes, hostile names, mistakes."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from small_detector import write_small_detector

from retinanet_plugin.__main__ import main
from retinanet_plugin.data.formats import read_dataset
from retinanet_plugin.data.planning.intake import Intake

FIGURES = ("precision_recall", "f1", "calibration", "confusion_matrix")
HOSTILE = ['<script>alert("1")</script>', "'\"><img src=x onerror=y>", "items", "$x_"]


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def truth_of(names=("cat", "dog"), num_images=2, boxes=2):
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 80, "height": 60} for i in range(num_images)
        ],
        "annotations": [
            {"id": 10 * i + j, "image_id": i, "category_id": j % len(names), "bbox": [5, 5, 30, 30]}
            for i in range(num_images)
            for j in range(boxes)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
    }


RESULTS = [
    {"image_id": 0, "category_id": 0, "bbox": [5, 5, 30, 30], "score": 0.9},
    {"image_id": 1, "category_id": 1, "bbox": [50, 5, 20, 30], "score": 0.5},
]


@pytest.fixture
def place(tmp_path):
    """A folder with truth.json, results.json and images/."""
    write(tmp_path / "truth.json", truth_of())
    write(tmp_path / "results.json", RESULTS)
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / f"images/{i}.png")
    return tmp_path


def report(place, *args, output="report"):
    given = args or ("--results", place / "results.json")
    common = ["--truth", place / "truth.json", "--images", place / "images"]
    main(["report", *map(str, [*common, "--output", place / output, *given])])
    return json.loads((place / output / "report.json").read_text())


def test_the_page_asks_nothing_of_a_network_and_its_figures_lie_beside_it(place):
    numbers = report(place)
    names = {path.name for path in (place / "report").iterdir()}
    figures = {f"{name}.png" for name in (*FIGURES, "worst_images")}
    assert names == {"report.html", "report.json", *figures}
    page = (place / "report/report.html").read_text()
    tags = Tags(page)
    sources = [attributes["src"] for attributes in tags.all("img")]
    assert len(sources) == len(FIGURES) + 2  # both images have errors
    assert all(source.startswith("data:image/") for source in sources)
    assert not tags.all("link")
    assert not any("src" in x for x in tags.all("script"))
    assert "http" not in page
    assert "url(" not in page
    assert numbers["num_images"] == 2
    assert numbers["num_boxes"] == 4
    # Of each class one of two boxes, or none, at any IoU.
    assert numbers["metrics"]["AP50"] == pytest.approx(51 / 101 / 2)
    assert set(numbers["score_thresholds"]) == {"cat", "dog"}


def test_what_the_slider_counts_with(place):
    report(place)
    page = (place / "report/report.html").read_text()
    counts = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert counts["boxes"] == [2, 2]
    ((cats, dogs),) = counts["hits"]
    assert (sum(cats), sum(dogs)) == (91, 0)  # from 0, 0.01, ... 0.9
    assert [sum(row) for row in counts["falseAlarms"][0]] == [0, 51]
    shown = re.findall(r'<g class="(\w+)" data-score="([\d.]+)"', page)
    assert shown.count(("truth", "0.9")) == shown.count(("hit", "0.9")) == 1
    assert shown.count(("truth", "2")) == 3
    assert shown.count(("false", "0.5")) == 1


def test_two_detectors_side_by_side(place):
    (place / "other").mkdir()
    better = [{**RESULTS[0], "category_id": k, "image_id": i} for i in (0, 1) for k in (0, 1)]
    other = write(place / "other/results.json", better)
    numbers = report(place, "--results", place / "results.json", "--results", other)
    assert numbers["compared_with"]["detector"] == "other/results.json"
    assert numbers["compared_with"]["metrics"]["AP"] == pytest.approx(1)
    change = numbers["difference"]["metrics"]["AP"]
    assert change == pytest.approx(1 - numbers["metrics"]["AP"])
    low, high = numbers["difference"]["intervals"]["AP"]
    assert low <= change <= high
    names = {path.name for path in (place / "report").iterdir()}
    assert {f"{name}_2.png" for name in FIGURES} <= names


def test_a_detector_and_its_copy_differ_by_nothing(place):
    """Intervals are of pairs: both are measured on the same images."""
    copy = write(place / "copy.json", RESULTS)
    numbers = report(place, "--results", place / "results.json", "--results", copy)
    assert set(map(tuple, numbers["difference"]["intervals"].values())) == {(0, 0)}


def test_names_are_text_whatever_they_are(place):
    truth = truth_of(HOSTILE, boxes=len(HOSTILE))
    truth["images"][0]["file_name"] = name = "'\"><b onclick=x>.png"
    (place / "images/0.png").rename(place / "images" / name)
    write(place / "truth.json", truth)
    numbers = report(place)
    assert list(numbers["score_thresholds"]) == HOSTILE
    tags = Tags((place / "report/report.html").read_text())
    assert len(tags.all("script")) == 2
    assert not any("onerror" in x or "onclick" in x for _, x in tags.tags)


def test_without_pictures(place, capsys):
    (place / "images/0.png").unlink()
    (place / "images/1.png").unlink()
    report(place)
    assert "WARNING: the page lacks pictures" in capsys.readouterr().err
    assert not (place / "report/worst_images.png").exists()
    assert "Some pictures are not shown" in (place / "report/report.html").read_text()


def test_the_folder_that_has_the_images_is_named(place):
    (place / "images").rename(place / "0")
    assert_fails(place, "--images .*images is no folder")
    (place / "images").mkdir()
    (place / "0").rename(place / "images/val")
    assert_fails(place, r"images has no 0\.png, but .*images/val has: name that")
    (place / "images/val/0.png").rename(place / "0.png")
    assert_fails(place, rf"images has no 0\.png, but {place} has: name that")


# ------------------------------------------------------------------ results of other images


def test_what_is_written_beside_results_tells_other_images_and_categories(place):
    described = {
        "images": [{"id": 0, "file_name": "elsewhere/0.png"}, {"id": 7, "file_name": "7.png"}],
        "categories": [{"id": 0, "name": "cat"}],
    }
    write(place / "annotations.json", described)
    report(place, output="again")
    described["images"][0]["file_name"] = "1.png"
    write(place / "annotations.json", described)
    assert_fails(place, "other ids than .*: the image 0 is 1.png in .*, and .*0.png in the truth")
    described["images"][0]["file_name"] = str(place / "truth.json")  # here, and of another size
    write(place / "annotations.json", described)
    assert_fails(place, "the image 0 is .*truth.json in")
    described["images"] = []
    described["categories"] = [{"id": 1, "name": "cat"}]
    write(place / "annotations.json", described)
    assert_fails(place, "the category 1 is cat in .*, and dog in the truth")
    (place / "annotations.json").rename(place / "coco_instances_truth.json")  # as after a training
    assert_fails(place, "the category 1 is cat in")


def test_no_image_of_a_plan_has_the_id_of_another_one(place):
    """Results on the images of its training are none on those for validation."""
    dataset = read_dataset(str(place / "truth.json"))
    entries = Intake(dataset, dataset, [], ("a", "b")).write(str(place), "plan")
    contents = [json.loads(Path(json_file).read_text()) for _, json_file, _ in entries]
    assert [[image["id"] for image in x["images"]] for x in contents] == [[1, 2], [3, 4]]
    assert {annotation["image_id"] for annotation in contents[1]["annotations"]} == {3, 4}


def random_objects(num_images, seed):
    """A box an image, and a detection of it, of no high score."""
    truth = truth_of(("cat",), num_images, boxes=1)
    corners = np.random.default_rng(seed).integers(0, (50, 30), (num_images, 2)).tolist()
    for annotation, (x, y) in zip(truth["annotations"], corners):
        annotation["bbox"] = [x, y, 30, 30]
    return truth, [
        {"image_id": i, "category_id": 0, "bbox": [x + 2, y, 30, 30], "score": 0.2}
        for i, (x, y) in enumerate(corners)
    ]


@pytest.mark.parametrize("num_images", [10, 100])
def test_detections_of_other_images_are_in_doubt(place, capsys, num_images):
    truth, own = random_objects(num_images, 0)
    _, others = random_objects(num_images, 1)
    write(place / "truth.json", truth)
    for results, is_in_doubt in ((own, False), (others, True)):
        write(place / "results.json", results)
        numbers = report(place, output=str(is_in_doubt))
        assert ("other images with the same ids" in numbers["doubt"]) == is_in_doubt
        assert ("WARNING: results.json: the det" in capsys.readouterr().err) == is_in_doubt


def test_detections_outside_of_their_images_are_in_doubt(place):
    beyond = {**RESULTS[0], "bbox": [70, 5, 30, 30]}
    write(place / "results.json", [*RESULTS, beyond])
    assert report(place)["doubt"].startswith("33% of the detections lie outside of their images")


def test_from_weights(tmp_path):
    """What the predictor finds is kept as results, which give the same report."""
    detector = write_small_detector(
        tmp_path, str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml"), "bees"
    )
    numbers = report(tmp_path, "--weights", detector.weights, "--device", "cpu")
    assert numbers["num_detections"] > 0
    found = tmp_path / "report/detections.json"
    found.rename(tmp_path / "found.json")
    for path in (tmp_path / "report").iterdir():
        path.unlink()
    again = report(tmp_path, "--results", tmp_path / "found.json")
    assert again["metrics"] == numbers["metrics"]


def test_a_damaged_image_has_no_detections(tmp_path, capsys):
    """As evaluations have it: the others are measured, and its objects are missed."""
    detector = write_small_detector(
        tmp_path, str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml"), "wasps"
    )
    first, *others = detector.files  # the first has the one object
    first.write_bytes(first.read_bytes()[:999])
    weights = ("--weights", detector.weights, "--device", "cpu")
    numbers = report(tmp_path, *weights)
    found = json.loads((tmp_path / "report/detections.json").read_text())
    assert {result["image_id"] for result in found} == set(range(11, 16))
    assert numbers["errors"]["misses"] == numbers["num_boxes"] == 1
    assert (
        f"WARNING: left out, and its objects count as not found: the image {first} cannot be"
        in (capsys.readouterr().err)
    )
    for path in others[:3]:
        path.write_bytes(b"")
    shutil.rmtree(tmp_path / "report")
    assert_fails(tmp_path, "4 of 6 images of --images cannot be read", *weights)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"images": []}, "it is an annotation file, no list of detections"),
        (7, "it is 7, no list"),
        ([{**RESULTS[0], "image_id": 99}], "entry 0 has image_id 99, and the truth has no such"),
        ([{**RESULTS[0], "category_id": 5}], "1 of 1 detections have categories .* first 5: give"),
        ([{**RESULTS[0], "category_id": [5]}], r"entry 0 has category_id \[5\], which is no id"),
        ([{**RESULTS[0], "bbox": [1, 2, 3]}], r"entry 0 has bbox \[1, 2, 3\], not four numbers"),
        ([{**RESULTS[0], "bbox": [1, 2, -3, 4]}], "of a negative width or height"),
        ([{**RESULTS[0], "bbox": [1, 2, float("nan"), 4]}], "not four numbers"),
        ([{**RESULTS[0], "score": 1.5}], "has score 1.5, not a number from 0 to 1"),
        ([{"image_id": 0, "category_id": 0, "score": 0.5}], "entry 0 has no 'bbox'"),
        (["x"], 'entry 0 is "x"'),
    ],
)
def test_wrong_results_are_one_sentence(place, results, message):
    write(place / "results.json", results)
    assert_fails(place, message)


def test_no_detections_are_a_report_of_misses(place, capsys):
    write(place / "results.json", [])
    numbers = report(place)
    assert numbers["metrics"]["AP"] == 0
    assert numbers["errors"]["hits"] == 0
    assert numbers["errors"]["misses"] == numbers["num_boxes"] > 0
    assert "there are no detections: lower the detector's" in capsys.readouterr().err
    assert "there are no detections" in (place / "report/report.html").read_text()


def test_detections_of_other_categories_are_left_out_and_told(place, capsys):
    expected = report(place)
    shutil.rmtree(place / "report")
    write(place / "results.json", [{**RESULTS[0], "category_id": 5}, *RESULTS])
    numbers = report(place)
    assert numbers["metrics"] == expected["metrics"]
    warned = capsys.readouterr().err
    assert "detections have categories that the truth does not have, the first 5: they" in warned


def test_what_is_odd_in_the_truth_is_told(place, capsys):
    truth = json.loads((place / "truth.json").read_text())
    truth["annotations"][0]["area"] = 1e6
    write(place / "truth.json", truth)
    report(place)
    assert "area 1e+06, more than it can hold" in capsys.readouterr().err


def assert_fails(place, message, *args, output="report"):
    with pytest.raises(SystemExit, match=message) as ended:
        report(place, *args, output=output)
    assert ended.value.code.startswith("error: ")
    assert "\n" not in ended.value.code


def test_other_mistakes(place):
    results = ("--results", place / "results.json")
    assert_fails(place, "given twice", *results, *results)
    assert_fails(place, "given 3 times: give one or two", *results, *results, *results)
    assert_fails(place, "cannot be read", "--results", place / "none.json")
    (place / "text.json").write_text("[1,")
    assert_fails(place, "not JSON", "--results", place / "text.json")
    write(place / "truth.json", truth_of(boxes=0))
    assert_fails(place, "has no boxes to find")
    (place / "report").mkdir()
    (place / "report/notes.txt").write_text("mine")
    assert_fails(place, r"report has files, such as notes\.txt: name a new folder")
    assert (place / "report/notes.txt").read_text() == "mine"
    assert_fails(place, "the folder /sys/r cannot be written to", output="/sys/r")
    write(place / "report/detections.json", RESULTS)
    assert_fails(place, rf": give --results {place}/report/detections.json and a new folder")
