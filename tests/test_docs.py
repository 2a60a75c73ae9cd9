"""What README.md and docs/ say is so: paths, keys, names, imports, and the code that they show."""

import ast
import json
import re
import shlex

import cv2
import numpy as np
import pytest
from conftest import ROOT
from detectron2 import model_zoo, modeling
from detectron2.config import get_cfg
from fvcore.common.config import CfgNode

import retinanet_plugin
from retinanet_plugin import add_retinanet_config
from retinanet_plugin.__main__ import main
from retinanet_plugin.commands import module_of
from retinanet_plugin.commands.arguments import read_config
from retinanet_plugin.config import check_config, load_config
from retinanet_plugin.engine import Checkpointer, argument_parser, setup_config

PACKAGE = ROOT / "retinanet_plugin"
PAGES = {page.name: page.read_text() for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
README, ARCHITECTURE = PAGES["README.md"], PAGES["architecture.md"]
REGISTRIES = (
    "CLS_LOSS_REGISTRY",
    "BOX_LOSS_REGISTRY",
    "MATCHER_REGISTRY",
    "RETINANET_HEAD_REGISTRY",
)


def blocks(page, *languages):
    """The code blocks of a page in any of some languages."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S)
    return [block for language, block in fences if language in languages]


def code_names(text):
    """What stands between single backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def table(page, header):
    """Rows of the table whose first line starts with ``header``, as lists of cells."""
    lines = page[page.index(f"\n| {header}") :].strip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def config():
    cfg = get_cfg()
    add_retinanet_config(cfg)
    return cfg


def value_of(cfg, key):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


# ------------------------------------------------------------------ paths and names


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r'(?:\]\(|src=")([^)"#]+)', PAGES[page]):
        assert target.startswith("https://") or (folder / target).exists(), target


WRITTEN_BY_USERS = (
    "config.yaml", "my_train.py", "OUTPUT_DIR/failure-000123/",
    "base.yaml", "annotations/", "output/",  # of new
)  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.M | re.S)
    names = [n for n in code_names(text) if re.fullmatch(r"[\w./-]+(/|\.(py|md|yaml))", n)]
    # Of package files, README and docs leave out the first folder.
    missing = [n for n in names if not any((top / n).exists() for top in (ROOT, PACKAGE))]
    missing = [name for name in missing if name not in WRITTEN_BY_USERS]
    for block in blocks(PAGES[page], "sh", "python"):
        names = re.findall(r"(?:configs|docs|benchmarks|tests|retinanet_plugin)/[\w./-]+", block)
        missing += [name for name in names if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_every_key_exists(page):
    keys = set(re.findall(r"\b(?:MODEL|DATASETS|SOLVER|INPUT)(?:\.[A-Z][A-Z0-9_]*)+", PAGES[page]))
    cfg = config()
    for key in keys:
        value_of(cfg, key)  # raises for an unknown one


def test_switches_of_performance_are_keys_with_their_defaults():
    for key, *_ in table(PAGES["performance.md"], "key"):
        (name,), is_on = code_names(key), "(on)" in key
        assert config().MODEL.RETINANET[name] is is_on


def test_every_code_block_has_a_language():
    for text in PAGES.values():
        fences = re.findall(r"^```(.*)$", text, re.M)
        assert set(fences[::2]) <= {"sh", "python", "text"}
        assert set(fences[1::2]) <= {""}


def test_tables_of_parts():
    for part, key, registry, here in table(README, "part"):
        value_of(config(), *code_names(key))  # raises for an unknown one
        if registry.strip("`") in REGISTRIES:
            entries = getattr(retinanet_plugin, registry.strip("`"))
            shipped = {n for n, x in entries if x.__module__.startswith("retinanet_plugin.")}
            assert set(code_names(here)) == shipped, part


def test_registries_and_defaults():
    base = load_config(str(ROOT / "configs/Base-RetinaNet.yaml"))
    rows = table(ARCHITECTURE, "registry")
    for registry, key, default in rows:
        (name,), (key,), (value, *_) = map(code_names, (registry, key, default))
        home = modeling if registry.startswith("Detectron2's") else retinanet_plugin
        assert value in getattr(home, name)
        cfg = base if "configs/" in default else config()
        assert value_of(cfg, key) == value
    assert {code_names(registry)[0] for registry, *_ in rows} > set(REGISTRIES)


def test_where_to_look():
    for _, files, name in table(README, "question"):
        *_, last = code_names(files)
        assert all((PACKAGE / file).is_file() for file in code_names(files))
        assert defined_in(PACKAGE / last) >= set(code_names(name))


def defined_in(path):
    tree = ast.parse(path.read_text())
    names = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    return names | {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}


# ------------------------------------------------------------------ the house


def house():
    """{file or folder: what it may import}, both by their names without ``.py`` and ``/``."""

    def plain(text):
        return [name.removesuffix("/").removesuffix(".py") for name in code_names(text)]

    rows = table(ARCHITECTURE, "in `retinanet_plugin/`")
    return {plain(name)[0]: set(plain(imports)) for name, _, imports in rows}


# Which every file may import.
BASE = {
    "config", "config_merging", "config_files", "config_errors", "errors", "whole_files",
    "new_folders", "file_lock", "eager", "box_iou", "triton_kernels", "subnormal",
    "compat",
}  # fmt: skip


def test_the_house_has_these_files():
    files = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/*.py")}
    assert set(house()) == files


def test_imports_run_as_the_house_says():
    rows = house()
    assert set(list(rows)[-len(BASE) :]) == BASE
    found = {name: set() for name in rows}
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).with_suffix("").parts
        found[place[0]] |= {name for name in imported(path, place) if name != place[0]}
    assert {name: imports - BASE for name, imports in found.items()} == rows


def test_exceptions_are_in_the_files_that_are_named():
    for folder, file in (("execution", "cuda_graphs.py"), ("data", "class_alphas.py")):
        assert f"`{folder}/{file}`" in ARCHITECTURE
        for path in (PACKAGE / folder).rglob("*.py"):
            place = path.relative_to(PACKAGE).with_suffix("").parts
            if path.name != file:
                assert imported(path, place) <= {folder, *BASE}, path


def imported(path, place):
    """The files and folders of the house that a file of the package imports from."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            target = (*place[: len(place) - node.level], *(node.module or "").split("."))
            first = [part for part in target if part][:1]
            names |= set(first) if first else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            modules = [getattr(node, "module", None) or alias.name for alias in node.names]
            assert not any(module.startswith("retinanet_plugin") for module in modules), path
    return names


# ------------------------------------------------------------------ code blocks


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with this checkout's configs, and what `make demo` makes, but not trained."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    cfg = load_config(str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml"))
    model = modeling.build_model(cfg)
    (folder / "output/digits").mkdir(parents=True)
    Checkpointer(model, str(folder / "output/digits"), cfg=cfg).save("model_final")
    (folder / "datasets/digits/val").mkdir(parents=True)
    images = np.random.default_rng(0).integers(256, size=(2, 160, 160, 3), dtype=np.uint8)
    names = ["00001.jpg", "00002.jpg"]
    for image, name in zip(images, names):
        cv2.imwrite(str(folder / "datasets/digits/val" / name), image)
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [9, 9, 20, 30]} for i in range(2)
        ],
        "categories": [{"id": 1, "name": "0"}],
    }
    (folder / "datasets/digits/annotations").mkdir()
    (folder / "datasets/digits/annotations/val.json").write_text(json.dumps(coco))
    return folder


@pytest.fixture
def registries_restored(monkeypatch):
    for name in REGISTRIES:
        registry = getattr(retinanet_plugin, name)
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))


@pytest.mark.parametrize("block", [b for page in PAGES.values() for b in blocks(page, "python")])
@pytest.mark.usefixtures("registries_restored")
def test_python_blocks_run(block, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    namespace = {"__name__": "readme"}
    exec(block, namespace)
    if "print(" in block:
        assert "Instances(num_instances=" in capsys.readouterr().out
    if isinstance(namespace.get("cfg"), CfgNode):
        check_config(namespace["cfg"])
        # Its parts can be built; on the meta device that costs nothing.
        namespace["cfg"].MODEL.DEVICE = "meta"
        modeling.build_model(namespace["cfg"])


def shell_commands(*start):
    """Arguments of the commands in sh blocks that start so, after what starts them.

    Those of the tutorial need each other's files, and are run by a test of its own.
    """
    found = []
    for page, text in PAGES.items():
        for line in (
            []
            if page == "tutorial.md"
            else "".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
        ):
            words = shlex.split(line, comments=True)
            if tuple(words[: len(start)]) == start:
                found.append(words[len(start) :])
    assert found
    return found


NEW = ("python", "-m", PACKAGE.name, "new")  # writes a config
DIGITS = "configs/digits/retinanet_narrow_R_50_FPN.yaml"


@pytest.fixture
def nothing_is_registered(monkeypatch):
    """Data sets of examples stay out of Detectron2's catalog."""
    for module in ("engine.command_line", "commands.arguments"):
        monkeypatch.setattr(f"retinanet_plugin.{module}.register_coco_json", lambda entries: None)


@pytest.mark.parametrize("arguments", shell_commands("python", "train_net.py"), ids=" ".join)
def test_training_commands_are_understood(arguments, nothing_is_registered, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = argument_parser().parse_args(arguments)
    planned = [f"{words[0]}/config.yaml" for words in shell_commands(*NEW)]
    if args.config_file in planned:
        args.config_file = DIGITS
    check_config(setup_config(args))


@pytest.mark.parametrize("arguments", shell_commands("python", "-m", PACKAGE.name), ids=" ".join)
def test_other_commands_are_understood(arguments, nothing_is_registered, monkeypatch):
    monkeypatch.chdir(ROOT)
    ran = []
    monkeypatch.setattr(module_of(arguments[0]), "run", ran.append)
    main(arguments)
    (args,) = ran
    if {"config_file", "opts"} <= vars(args).keys():
        read_config(args)


def test_make_knows_its_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in {words[0] for words in shell_commands("make")}:
        assert re.search(rf"^{target}:.*## ", makefile, re.M), target


def test_benchmarks_have_their_options():
    for script, *options in shell_commands(".venv/bin/python"):
        if script.startswith("benchmarks/"):
            source = (ROOT / script).read_text()
            assert all(f'"{option}"' in source for option in options if option.startswith("--"))


def test_the_zoos_checkpoint_has_the_name_that_readme_gives():
    (name,) = re.findall(r'get_checkpoint_url\("(.+?)"\)', README)
    assert model_zoo.get_checkpoint_url(name).endswith(".pkl")
    assert (ROOT / "configs" / name).is_file()
