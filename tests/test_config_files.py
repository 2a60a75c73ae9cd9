"""Config files are data: what is read, what is refused in a sentence, and that nothing runs."""

import pytest
from conftest import ROOT
from detectron2.config import get_cfg

from retinanet_plugin.config import is_set, load_config
from retinanet_plugin.config_files import read_config_file
from retinanet_plugin.errors import UserError

BASE = ROOT / "configs/Base-RetinaNet.yaml"


@pytest.fixture
def config_file(tmp_path):
    """``config_file(content, name="my.yaml")``: the path of a file with that text or bytes."""

    def write(content, name="my.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def error_of(path, opts=()):
    with pytest.raises(UserError) as error:
        load_config(path, opts)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: write KEY: VALUE"),
        ("# nothing\n", "is empty"),
        ("MODEL:", "MODEL is None"),
        ("- a", "is no mapping"),
        ("SOLVER: [1]", "SOLVER is [1] in"),
        ("SOLVER: {MAX_ITER: {a: 1}}", "SOLVER.MAX_ITER is a section"),
        ("MODEL:\n\tDEVICE: cpu", "line 2, column 1 (found character '\\t'"),
        ("MODEL: {", "is not valid YAML in line 1"),
        ("SEED: 1\n---\nSEED: 2", "is not valid YAML in line 2"),
        ("SEED: !mine 3", "could not determine a constructor"),
        ("[" * 700, "nested too deeply"),
        ("SEED: 1\nVIS_PERIOD: 0\nSEED: 2", "has the key SEED twice, in lines 1 and 3"),
        ("SOLVER:\n  MAX_ITER: 1\n  MAX_ITER: 2", "has the key MAX_ITER twice, in lines 2 and 3"),
        ("1: 2", "has a key in line 1 that is no name"),
        ("? [a]\n: 2", "has a key in line 1 that is no name"),
        (b"\x89PNG\r\n", "is not text in UTF-8 (byte 0)"),
        (b"\x00\x01", "is not valid YAML"),
        ("SEED: 1".encode("utf-16"), "is not text in UTF-8"),
        ("VERSION: 3", "has VERSION 3: write VERSION: 2"),
        ("SOLVER.MAX_ITER: 3", "write MAX_ITER into the section SOLVER"),
        ("SOLVER: {NUM_WORKERS: 3}", "the nearest known key is DATALOADER.NUM_WORKERS"),
        ("NUM_CLASSES: 3", "the nearest known key is MODEL.RETINANET.NUM_CLASSES"),
        ("SOLVER: {MY_RULE: ADAM}", "SOLVER.MY_RULE in"),
        ("_BASE_: my.yaml", "builds on itself"),
        ("_BASE_: [3]", "has the _BASE_ 3: write the path"),
        ("_BASE_: none.yaml", "none.yaml, which does not exist: correct its _BASE_"),
        ("_BASE_: .", "which is a folder: correct its _BASE_"),
        ("_BASE_: model.py", "model.py is Python, which is not run"),
        (f"_BASE_: {BASE}\nSOLVER: {{STEPS: {{a: 1}}}}", "SOLVER.STEPS as a section, but its"),
    ],
)
def test_files_that_are_no_config(config_file, content, message):
    assert message in error_of(config_file(content))


def test_a_far_name_is_not_suggested(config_file):
    assert error_of(config_file("FOO: 1")).endswith(": correct or remove it")


def test_a_folder_and_a_lazy_config(tmp_path):
    assert "is a folder: correct --config-file" in error_of(str(tmp_path))
    lazy = str(ROOT / "configs/lazy/retinanet_R_50_FPN.py")
    assert "tools/lazyconfig_train_net.py" in error_of(lazy)


def test_a_circle_of_files(config_file):
    config_file("_BASE_: my.yaml", "other.yaml")
    path = config_file("_BASE_: other.yaml")
    assert error_of(path).count("other.yaml") == 1


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SOLVER", "3"), "SOLVER is 3 in the options of the command line, but it is a section"),
        (("SOLVER.MAX_ITER.X", "3"), "the nearest known key is SOLVER.MAX_ITER"),
        (("MAX_ITER", "3"), "the nearest known key is SOLVER.MAX_ITER"),
        (("DATASETS.TRAIN", "mine"), "DATASETS.TRAIN is 'mine' in the options of the command line"),
        (("INPUT.MIN_SIZE_TRAIN", "800"), "write (800,)"),
        (("INPUT.MIN_SIZE_TRAIN", "(800"), "with all its brackets"),
        (("SOLVER.AMP.ENABLED", "yes"), "write True or False"),
        (("SOLVER.MAX_ITER", "9e4"), "SOLVER.MAX_ITER is the float 90000.0"),
        (("_BASE_", "x.yaml"), "unknown config key _BASE_"),
    ],
)
def test_options_of_the_command_line(opts, message):
    assert message in error_of(str(BASE), opts)


# ------------------------------------------------------------------ nothing runs

TAGS = (
    "!!python/object/apply:os.system ['touch {mark}']",
    '!!python/object/apply:eval [\'open("{mark}", "w")\']',
    "!!python/object/apply:eval ['[x for x in (1).__class__.__mro__]']",
    '!!python/object/apply:exec [\'open("{mark}", "w")\']',
    "!!python/object/new:os.system ['touch {mark}']",
    "!!python/object:argparse.Namespace {{}}",
    "!!python/name:os.system",
    "!!python/module:antigravity",
)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("builds_on_it", [False, True])
def test_a_file_that_would_run_code(config_file, tmp_path, tag, builds_on_it):
    mark = tmp_path / "ran"
    path = config_file(f"OUTPUT_DIR: {tag.format(mark=str(mark))}", "code.yaml")
    if builds_on_it:
        path = config_file("_BASE_: code.yaml")
    message = error_of(path)
    assert "code.yaml would run code in line 1 (!!python/" in message
    assert not mark.exists()


@pytest.mark.parametrize(
    "expression", ["9**9**9", "[0] * 10**9", "'a' * 10", "abs(1)", "1 if 1 else 2"]
)
def test_eval_is_arithmetic_alone(config_file, expression):
    path = config_file(f'SEED: !!python/object/apply:eval ["{expression}"]')
    assert "only arithmetic of numbers and lists is understood" in error_of(path)


# ------------------------------------------------------------------ what is read


def test_the_zoos_anchor_sizes(config_file):
    """The one expression in the RetinaNet configs of Detectron2's zoo, and of many users."""
    sizes = "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"
    path = config_file(f'SIZES: !!python/object/apply:eval ["{sizes}"]')
    assert read_config_file(path) == {"SIZES": eval(sizes)}


def test_bases_are_merged_key_by_key(config_file, tmp_path):
    (tmp_path / "below").mkdir()
    config_file("SOLVER: {MAX_ITER: 1, BASE_LR: 0.5}\nSEED: 1", "a.yaml")
    config_file("SOLVER: {MAX_ITER: 2}", "b.yaml")
    path = config_file("_BASE_: [../a.yaml, ../b.yaml]\nSEED: 3", "below/c.yaml")
    assert read_config_file(path) == {"SOLVER": {"MAX_ITER": 2, "BASE_LR": 0.5}, "SEED": 3}
    path = config_file(f"_BASE_: {path}\nVIS_PERIOD: 0", "d.yaml")
    assert load_config(path).SOLVER.MAX_ITER == 2


def test_merge_keys_and_tuples_of_yaml(config_file):
    path = config_file("a: &a {x: 1, y: 1}\nb:\n  <<: *a\n  x: 2\nc: !!python/tuple [1, 2]")
    assert read_config_file(path) == {"a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 1}, "c": (1, 2)}


def test_a_file_of_version_1_is_read_as_detectron2_reads_it(config_file):
    path = config_file("VERSION: 1\nMODEL: {WEIGHT: old.pkl}\nTEST: {AUG_ON: True}")
    stock = get_cfg()
    stock.merge_from_file(path)
    cfg = load_config(path)
    assert cfg.MODEL.WEIGHTS == stock.MODEL.WEIGHTS == "old.pkl"
    assert cfg.TEST.AUG.ENABLED is stock.TEST.AUG.ENABLED is True
    assert "HEAD_NAME" in cfg.MODEL.RETINANET


@pytest.mark.parametrize("content", ["VERSION: 2\nSEED: 1\n", "\ufeffVERSION: 2\r\nSEED: 1\r\n"])
def test_files_of_other_editors(config_file, content):
    assert load_config(config_file(content)).SEED == 1


def test_whether_a_key_is_set(config_file):
    key = "MODEL.RETINANET.NUM_CLASSES"
    given = config_file("MODEL: {RETINANET: {NUM_CLASSES: 80}}", "given.yaml")
    inherited = config_file("_BASE_: given.yaml")
    assert is_set(key, given)
    assert is_set(key, inherited)
    assert is_set(key, "", [key, "80"])
    assert not is_set(key, str(BASE), ["SEED", "1"])
