"""``new``: from annotated images to a config that trains, and mistakes as sentences."""

import html
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import train_net
from retinanet_plugin.__main__ import end_at_sigterm, main
from retinanet_plugin.commands import new
from retinanet_plugin.commands.new import duration
from retinanet_plugin.config import load_config
from retinanet_plugin.data.planning.choice import Machine, StepCost
from retinanet_plugin.data.planning.intake import take_in
from retinanet_plugin.data.planning.network import PRECISION, choose_network
from retinanet_plugin.data.planning.plan import Wishes
from retinanet_plugin.engine import step_cost
from retinanet_plugin.engine.other_programs import OtherPrograms
from retinanet_plugin.engine.step_cost import measure_machine, measure_step
from retinanet_plugin.errors import UserError


@pytest.fixture(autouse=True)
def _own_catalog():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def measured(monkeypatch):
    """Costs that were measured once: a test is not to depend on how busy its machine is."""
    monkeypatch.setattr(new.OtherPrograms, "busy_cores", lambda _: 0.0)
    monkeypatch.setattr(new, "measure_machine", lambda cfg, facts, _: Machine("cpu", 0.5, 0.0, 1.6))
    cost = StepCost(0.4, 0.0, 0.05)
    monkeypatch.setattr(new, "measure_fitting_batch", lambda cfg: (cfg.SOLVER.IMS_PER_BATCH, cost))


def write_data(
    folder,
    num_images=6,
    size=(64, 48),
    mode="RGB",
    box=(10, 10, 20, 20),
    names=("a",),
    suffix="png",
):
    """A COCO file beside its images, each of another colour, with a box of every class."""
    folder.mkdir(exist_ok=True)
    images, annotations = [], []
    for i in range(num_images):
        picture = Image.new("RGB", size, (i * 37 % 256, i * 91 % 256, 255 - i * 53 % 256))
        picture.paste((255, 255, 255), (i * 7 % size[0] // 2, 0, size[0] // 2, 5 + i % 20))
        name = f"{i}.{suffix}"
        picture.convert(mode).save(folder / name)
        images.append({"id": i, "file_name": name, "width": size[0], "height": size[1]})
        annotations += [
            {"id": len(annotations) + k, "image_id": i, "category_id": k, "bbox": list(box)}
            for k in range(len(names))
        ]
    categories = [{"id": k, "name": name} for k, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "all.json").write_text(json.dumps(content))
    return str(folder / "all.json")


def train(folder, iterations):
    opts = ["SOLVER.MAX_ITER", iterations, "TEST.EVAL_PERIOD", 0, "SOLVER.IMS_PER_BATCH", 2]
    train_net.run(["--config-file", str(folder / "config.yaml"), "--opts", *map(str, opts)])


@pytest.mark.usefixtures("measured")
def test_two_commands_from_images_to_a_detector(tmp_path, capsys):
    data = write_data(tmp_path / "data", names=("cat", "dog"))
    main(["new", str(tmp_path / "cats"), "--train", data, "--budget", "60s"])
    out = capsys.readouterr().out
    for text in ("5 images to train on, 1 for validation; 2 classes", "config.yaml", "--no-flip"):
        assert text in out
    cfg = load_config(str(tmp_path / "cats/config.yaml"))
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 2
    assert "cats_train" in DatasetCatalog.list()
    page = (tmp_path / "cats/plan.html").read_text()
    assert "<html" in page[:200].lower()
    assert "<dt>time allowed</dt><dd>1 min</dd>" in page
    train(tmp_path / "cats", 2)
    assert (tmp_path / "cats/output/model_final.pth").exists()
    assert not any(path.suffix == ".png" for path in (tmp_path / "cats").rglob("*"))


def test_costs_are_measured(tmp_path):
    data = write_data(tmp_path / "data", 4)
    intake, wishes = take_in(data, None), Wishes(60.0)
    named = new._name_data(intake, str(tmp_path / "plan"))
    cfg = new._draft([*named, *choose_network("cpu", "")], wishes, intake)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.SOLVER.IMS_PER_BATCH = (64,), 2
    cost = measure_step(cfg, seconds=0.0)
    assert 0 <= cost.loading_seconds < cost.seconds < 60
    assert 0 < cost.eval_seconds < 60
    assert not (tmp_path / "plan/output").exists()


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(("busy", "is_said"), [(2.0, True), (1.9, False)])
def test_a_busy_machine_is_said(tmp_path, capsys, monkeypatch, busy, is_said):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(new.OtherPrograms, "busy_cores", lambda _: busy)
    main(["new", str(tmp_path / "plan"), "--train", write_data(tmp_path / "data")])
    sentence = "other programs kept 2.0 of 8 cores busy while steps were measured"
    for text in (capsys.readouterr().out, (tmp_path / "plan/plan.html").read_text()):
        assert (sentence in text) == is_said


def test_other_programs_are_seen_and_this_one_is_not(monkeypatch):
    """Of two cores, this program had one for 10 seconds, and another program 15 of its own."""
    clock, files = (
        iter([100.0, 110.0]),
        iter(["cpu 1000 0 0 0 0 0 0 0", "cpu 3000 200 300 9 9 0 0 0"]),
    )
    own = iter([os.times_result((5.0, 0, 0, 0, 0)), os.times_result((13.0, 1.0, 1.0, 0, 0))])
    monkeypatch.setattr("os.times", lambda: next(own))
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("builtins.open", lambda *_: io.StringIO(next(files)))
    others = OtherPrograms()
    assert others.busy_cores() == pytest.approx(1.5)


def test_another_program_for_a_moment_is_no_gain_of_bfloat16(tmp_path, monkeypatch):
    data = write_data(tmp_path / "data", 4)
    named = new._name_data(intake := take_in(data, None), str(tmp_path / "plan"))
    cfg = new._draft([*named, *choose_network("cpu", "")], Wishes(60.0), intake)
    facts, *_ = new._checked(cfg)
    costs = iter([4.0, 0.6, 1.2, 0.7])
    monkeypatch.setattr(step_cost, "measure_step", lambda *_, **__: StepCost(next(costs), 0.0, 0.0))
    assert measure_machine(cfg, facts, PRECISION).bfloat16_gain == pytest.approx(2.0)


SETS = {
    "3 images": {"num_images": 3},
    "2 images": {"num_images": 2},
    "grey": {"mode": "L"},
    "transparent": {"mode": "RGBA"},
    "boxes of 4 pixels": {"box": (7, 9, 4, 4)},
    "boxes of the whole image": {"box": (0, 0, 64, 48)},
    "200 classes": {"names": [f"class {i}" for i in range(200)]},
    "1,500 pixels": {"size": (1500, 1500), "num_images": 3},
}


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("name", SETS)
def test_any_data_give_a_plan_that_trains(name, tmp_path):
    data = write_data(tmp_path / "data", **SETS[name])
    main(["new", str(tmp_path / "plan"), "--train", data])
    train(tmp_path / "plan", 1)
    assert (tmp_path / "plan/output/model_final.pth").exists()


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(("num_images", "num_val"), [(1, 1), (2, 0), (3, 2), (5, 0), (7, 1)])
def test_few_images_give_a_plan_that_nothing_is_to_be_said_against(
    num_images, num_val, tmp_path, capsys
):
    arguments = ["--train", write_data(tmp_path / "data", num_images)]
    if num_val:
        arguments += ["--val", write_data(tmp_path / "val", num_val)]
    main(["new", str(tmp_path / "plan"), *arguments])
    assert "warning" not in capsys.readouterr().out
    main(["doctor", "--config-file", str(tmp_path / "plan/config.yaml")])
    assert "no errors, no warnings" in capsys.readouterr().out
    cfg = load_config(str(tmp_path / "plan/config.yaml"))
    assert cfg.SOLVER.IMS_PER_BATCH == (num_images if num_val else num_images - 1)


@pytest.mark.usefixtures("measured")
def test_images_for_validation_can_be_named(tmp_path):
    data = write_data(tmp_path / "data", 3, names=("a", "b"))
    val = write_data(tmp_path / "val", 2, names=("b", "a"))
    main(["new", str(tmp_path / "plan"), "--train", data, "--val", val, "--no-flip"])
    cfg = load_config(str(tmp_path / "plan/config.yaml"))
    (_, train_json, _), (_, val_json, folder) = cfg.DATASETS.COCO_JSON
    assert folder == str(tmp_path / "val")
    train_set, val_set = (json.loads(Path(path).read_text()) for path in (train_json, val_json))
    assert (len(train_set["images"]), len(val_set["images"])) == (3, 2)
    assert train_set["categories"] == val_set["categories"]
    assert cfg.INPUT.RANDOM_FLIP == "none"


@pytest.mark.usefixtures("measured")
def test_crowded_images_are_planned_with_as_many_detections(tmp_path, capsys):
    data = Path(write_data(tmp_path / "data"))
    content = json.loads(data.read_text())
    box = {"image_id": 0, "category_id": 0, "bbox": [5, 5, 20, 20]}
    content["annotations"] = [{**box, "id": i, "image_id": i % 6} for i in range(6 * 120)]
    data.write_text(json.dumps(content))
    main(["new", str(tmp_path / "plan"), "--train", str(data)])
    main(["doctor", "--config-file", str(tmp_path / "plan/config.yaml")])
    assert "raise TEST.DETECTIONS_PER_IMAGE" not in capsys.readouterr().out
    assert load_config(str(tmp_path / "plan/config.yaml")).TEST.DETECTIONS_PER_IMAGE == 200


@pytest.mark.usefixtures("measured")
def test_a_folder_may_be_called_as_a_data_set_of_detectron2(tmp_path):
    data = write_data(tmp_path / "data")
    main(["new", str(tmp_path / "voc_2007"), "--train", data])
    cfg = load_config(str(tmp_path / "voc_2007/config.yaml"))
    assert list(cfg.DATASETS.TRAIN) == ["voc_2007_plan_train"]


def test_images_elsewhere_can_be_named(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    data = Path(write_data(tmp_path / "data"))
    data = data.rename(tmp_path / "elsewhere/all.json")
    assert "name their folder by --images" in fails(tmp_path / "plan", "--train", data)
    intake = take_in(str(data), None, str(tmp_path / "data"))
    assert len(intake.train.images) == 5


def fails(*args):
    with pytest.raises(SystemExit) as stop:
        main(["new", *map(str, args)])
    return str(stop.value.code)


@pytest.mark.usefixtures("measured")
def test_a_plan_is_not_overwritten(tmp_path):
    data = write_data(tmp_path / "data")
    main(["new", str(tmp_path / "plan"), "--train", data])
    before = (tmp_path / "plan/config.yaml").read_bytes()
    assert "has a plan already" in fails(tmp_path / "plan", "--train", data)
    assert (tmp_path / "plan/config.yaml").read_bytes() == before


def test_files_that_are_there_are_not_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    data = Path(write_data(tmp_path / "mine/annotations"))
    train_json = data.rename(data.with_name("train.json"))
    before = train_json.read_bytes()
    text = fails(tmp_path / "mine", "--train", train_json)
    assert "has files, such as annotations: name a new folder, such as" in text
    assert [x.name for x in (tmp_path / "mine").iterdir()] == ["annotations"]
    assert train_json.read_bytes() == before
    assert "train.json is a file" in fails(train_json, "--train", train_json)
    assert "the folder has no name" in fails("", "--train", train_json)


def test_a_plan_that_failed_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    data = write_data(tmp_path / "data")
    monkeypatch.setattr(new, "measure_machine", stop)
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(SystemExit):
            main(["new", str(tmp_path / name), "--train", data])
    assert not (tmp_path / "new").exists()
    assert not any((tmp_path / "empty").iterdir())


def test_a_plan_that_was_ended_leaves_nothing(tmp_path, monkeypatch, capsys):
    def measure(*_):
        assert (tmp_path / "plan/annotations/train.json").exists()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(new, "measure_machine", measure)
    before = signal.signal(signal.SIGTERM, end_at_sigterm)
    try:
        with pytest.raises(SystemExit) as stop:
            main(["new", str(tmp_path / "plan"), "--train", write_data(tmp_path / "data")])
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.value.code == 143
    assert "ended by SIGTERM" in capsys.readouterr().err
    assert not (tmp_path / "plan").exists()


def test_a_plan_that_failed_removes_nothing_of_others(tmp_path, monkeypatch):
    """Such as a file that somebody saved there while steps were measured."""

    def stop(*_):
        (tmp_path / "plan/annotations/mine.txt").write_text("notes")
        raise UserError("the reason")

    monkeypatch.setattr(new, "measure_machine", stop)
    assert "the reason" in fails(tmp_path / "plan", "--train", write_data(tmp_path / "data"))
    assert [x.name for x in (tmp_path / "plan").rglob("*")] == ["annotations", "mine.txt"]


def test_one_plan_at_a_time_in_a_folder(tmp_path, measured, clean_env):
    data, plan = write_data(tmp_path / "data"), tmp_path / "plan"
    code = (
        "import sys\n"
        "from retinanet_plugin.new_folders import new_folder\n"
        "with new_folder(sys.argv[1], ['annotations/train.json']):\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(plan)],
        env=clean_env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "ready\n"
        text = fails(plan, "--train", data)
        assert f"another process writes into {plan} (process {other.pid} on " in text
        other.kill()
        other.wait()
    # It was killed while it wrote.
    (plan / "annotations").mkdir()
    (plan / "annotations/train.json").write_text("half")
    (plan / "annotations/val.json.123.tmp").write_text("half")
    main(["new", str(plan), "--train", data])
    assert sorted(x.name for x in plan.iterdir()) == sorted(
        {Path(path).parts[0] for path in new._FILES}
    )
    assert sorted(x.name for x in (plan / "annotations").iterdir()) == ["train.json", "val.json"]


def test_a_killed_plan_does_not_make_files_of_others_its_own(tmp_path):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan/.retinanet-unfinished").write_text("process 1 on here")
    (tmp_path / "plan/mine.txt").write_text("notes")
    text = fails(tmp_path / "plan", "--train", write_data(tmp_path / "data"))
    assert "has files, such as mine.txt" in text
    assert (tmp_path / "plan/mine.txt").read_text() == "notes"


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    text = fails(tmp_path / "file/plan", "--train", write_data(tmp_path / "data"))
    assert f"the folder {tmp_path}/file/plan cannot be made (Not a directory)" in text


def test_a_plan_writes_what_an_error_removes(tmp_path, measured):
    data = write_data(tmp_path / "data")
    main(["new", str(tmp_path / "plan"), "--train", data])
    written = [x for x in (tmp_path / "plan").rglob("*") if x.is_file()]
    assert sorted(x.relative_to(tmp_path / "plan").as_posix() for x in written) == list(new._FILES)


def test_a_mistake_in_the_data_names_the_data(tmp_path):
    data = write_data(tmp_path / "data", box=(900, 10, 20, 20))
    text = fails(tmp_path / "plan", "--train", data)
    assert text.startswith(f"error: {data}: box 1 of 0.png has bbox [900.0, 10.0, 20.0, 20.0], ")
    assert "lies outside its image" in text


@pytest.mark.usefixtures("measured")
def test_warnings_name_the_users_files_and_no_ids_of_other_files(tmp_path, capsys):
    data = write_data(tmp_path / "data")
    val = write_data(tmp_path / "val", 2, mode="CMYK", suffix="jpg")
    (tmp_path / "data/3.png").write_bytes(b"")
    main(["new", str(tmp_path / "plan"), "--train", data, "--val", val])
    out = capsys.readouterr().out
    assert f"  {data}: image {tmp_path}/data/3.png is empty" in out
    assert f"  {val}: image {tmp_path}/val/0.jpg has the colours of print" in out
    page = html.unescape((tmp_path / "plan/plan.html").read_text())
    assert f"<li>warning: {data}: image {tmp_path}/data/3.png is empty" in page
    assert f"<li>warning: {val}: image {tmp_path}/val/0.jpg has the colours of print" in page
    assert f"<li>1 image is damaged: {tmp_path}/data/3.png is empty" in page


def test_images_that_were_set_aside_are_said_to_be(tmp_path):
    data = write_data(tmp_path / "data")
    assert take_in(data, None).called == (data, f"{data} (images for validation)")


def test_mistakes_are_sentences_and_leave_no_plan(tmp_path):
    nothing, one = tmp_path / "nothing", write_data(tmp_path / "data", 1)
    assert "nothing does not exist" in fails(tmp_path / "plan", "--train", nothing)
    assert "add more" in fails(tmp_path / "plan", "--train", one)
    assert not (tmp_path / "plan").exists()


def test_an_image_is_not_in_both(tmp_path):
    data = write_data(tmp_path / "data")
    with pytest.raises(UserError, match="as 6 images are: leave --val out"):
        take_in(data, data)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("1d", 86400)]
)
def test_budgets(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["10", "m", "-5m", "0h", "1w", "ten minutes"])
def test_what_is_no_time_is_refused(text, tmp_path):
    assert fails(tmp_path / "plan", "--train", "x", "--budget", text) == "2"


def test_a_budget_that_is_no_time_to_train_in_is_refused(tmp_path):
    code = fails(tmp_path / "plan", "--train", "x", "--budget", "1s")
    assert "--budget 1 s is no time to train in" in code
    assert "give it 1 min or more" in code


def test_weights_that_are_not_there_may_be_left_out(tmp_path):
    code = fails(tmp_path / "plan", "--train", "x", "--weights", "nope")
    assert "correct --weights, or leave it out" in code
