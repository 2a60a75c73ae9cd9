"""The page of a report, opened and clicked in Chromium, at a small and a large screen."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from retinanet_plugin.__main__ import main

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.common.exceptions import WebDriverException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NUM_CLASSES = 40  # more than are in sight at once
# Score of each detection in the pictures, and whether it is to be seen.
DETECTIONS = """
    return [...document.querySelectorAll(".photo .hit:not(.label), .photo .false:not(.label)")].map(
      box => [Number(box.dataset.score), box.getClientRects().length > 0]);
"""
# Score of the detection that finds each truth, and whether it is drawn as missed.
TRUTH = """
    return [...document.querySelectorAll(".photo .truth:not(.label)")].map(
      box => [Number(box.dataset.score), box.classList.contains("missed")]);
"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not (found and driver):
        pytest.skip("there is no Chromium with chromedriver: apt-get install chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage",
                     "hide-scrollbars"):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    except WebDriverException as error:
        pytest.skip(f"Chromium does not start here: {error.msg}")
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Folders of the reports of one detector, and of two."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    truth = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 160, "height": 90} for i in range(20)
        ],
        "annotations": [],
        "categories": [{"id": k, "name": f"class number {k}"} for k in range(NUM_CLASSES)],
    }
    results = []
    for i in range(20):
        Image.fromarray(rng.integers(0, 255, (90, 160, 3), np.uint8)).save(folder / f"{i}.png")
        for k in rng.integers(0, NUM_CLASSES, 4).tolist():
            x, y = rng.integers(0, (130, 60)).tolist()
            box = {"image_id": i, "category_id": k, "bbox": [x, y, 30, 30]}
            truth["annotations"].append({"id": len(truth["annotations"]), **box})
            for wrong in (0, 1):
                score = round(float(rng.random()), 2)
                results.append({**box, "category_id": (k + wrong) % NUM_CLASSES, "score": score})
    (folder / "truth.json").write_text(json.dumps(truth))
    for name, part in (("a", results), ("b", results[::2])):
        (folder / f"{name}.json").write_text(json.dumps(part))
    common = ["report", "--truth", folder / "truth.json", "--images", folder]
    both = ["--results", folder / "a.json", "--results", folder / "b.json"]
    main([str(x) for x in (*common, *both[:2], "--output", folder / "one")])
    main([str(x) for x in (*common, *both, "--output", folder / "two")])
    return {"one": folder / "one", "two": folder / "two"}


@pytest.fixture
def open_page(browser, reports):
    def call(name, width=1400, height=900):
        browser.set_window_size(width, height)
        browser.get(f"file://{reports[name]}/report.html")
        return json.loads((reports[name] / "report.json").read_text())

    yield call
    assert browser.get_log("browser") == []  # no error of its script, no file that is missing


def number(browser, name):
    return int(browser.find_element(By.CSS_SELECTOR, f".counts .{name}").text.replace(",", ""))


def test_the_slider_counts_and_shows_boxes(browser, open_page):
    numbers = open_page("one")
    slider = browser.find_element(By.ID, "threshold")
    for keys in ("", Keys.ARROW_RIGHT * 5, Keys.HOME, Keys.ARROW_RIGHT * 50, Keys.END):
        slider.send_keys(keys)
        at = int(slider.get_attribute("value"))
        assert browser.find_element(By.ID, "shown").text == f"{at / 100:.2f}"
        curves = numbers["curves"]
        hits = sum(counts[at] for counts in curves["hits"].values())
        false_alarms = sum(counts[at] for counts in curves["false_alarms"].values())
        assert number(browser, "hits") == hits
        assert number(browser, "false-alarms") == false_alarms
        assert number(browser, "misses") == numbers["num_boxes"] - hits
        for score, is_shown in browser.execute_script(DETECTIONS):
            assert is_shown == (score >= at / 100)
        for score, is_missed in browser.execute_script(TRUTH):
            assert is_missed == (score < at / 100 or score > 1)


def test_the_slider_can_be_dragged_and_stays_in_sight(browser, open_page):
    open_page("two")
    last = browser.find_elements(By.CSS_SELECTOR, "figure")[-1]
    browser.execute_script("arguments[0].scrollIntoView()", last)
    slider = browser.find_element(By.ID, "threshold")
    before = slider.get_attribute("value")
    webdriver.ActionChains(browser).move_to_element(slider).click().perform()
    assert 45 < int(slider.get_attribute("value")) < 55
    assert slider.get_attribute("value") != before or before == "50"


def test_the_counts_of_one_class(browser, open_page):
    numbers = open_page("one")
    at = round(100 * numbers["score_thresh"])
    name = max(numbers["by_class"], key=lambda row: row["boxes"])["class"]
    Select(browser.find_element(By.ID, "class")).select_by_visible_text(name)
    assert number(browser, "hits") == numbers["curves"]["hits"][name][at]
    assert number(browser, "false-alarms") == numbers["curves"]["false_alarms"][name][at]


def test_classes_that_are_not_in_sight_at_once(browser, open_page):
    numbers = open_page("one")
    rows = browser.find_elements(By.CSS_SELECTOR, ".classes tbody tr")
    assert len(rows) == NUM_CLASSES
    assert sum(row.is_displayed() for row in rows) == 30
    browser.find_element(By.CSS_SELECTOR, "summary").click()
    assert all(row.is_displayed() for row in rows)
    shown = {row.find_element(By.CSS_SELECTOR, "td").text for row in rows}
    assert shown == set(numbers["score_thresholds"])


@pytest.mark.parametrize("width", [500, 1400])  # Chromium's windows are no narrower
@pytest.mark.parametrize("name", ["one", "two"])
def test_nothing_is_clipped(browser, open_page, name, width):
    """Neither the page, which scrolls up and down alone, nor a label of a picture."""
    open_page(name, width)
    scroll, inner = browser.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth]"
    )
    assert scroll <= inner
    cut = browser.execute_script("""
        const cut = [];
        for (const text of document.querySelectorAll(".photo text")) {
          const label = text.getBoundingClientRect();
          const photo = text.closest("svg").getBoundingClientRect();
          if (label.width && (label.left < photo.left - 1 || label.right > photo.right + 1 ||
              label.top < photo.top - 1 || label.bottom > photo.bottom + 1 || label.height < 10))
            cut.push(text.textContent);
        }
        return cut;
    """)
    assert cut == []
    assert browser.find_elements(By.CSS_SELECTOR, ".photo g:not(.hidden) text:not(.covered)")
    loaded = browser.execute_script(
        "return [...document.images].map(image => image.complete && image.naturalWidth)"
    )
    assert loaded
    assert all(loaded)
