"""The order of the images: Detectron2's, and the same from wherever a training goes on."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.utils import comm

from retinanet_plugin import add_retinanet_config
from retinanet_plugin.data.loading.fingerprint import fingerprint
from retinanet_plugin.data.loading.random_states import seed_generators, unchanged_random_states
from retinanet_plugin.data.loading.training_order import Restarted, TrainingLoader
from retinanet_plugin.errors import UserError

SAMPLERS = ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"]
if hasattr(get_cfg().DATASETS, "TRAIN_REPEAT_FACTOR"):  # since 2023
    SAMPLERS += ["WeightedTrainingSampler", "WeightedCategoryTrainingSampler"]
NUM_IMAGES = 23


def record(i):
    """Image i: wide, high and square ones in turn, of three classes."""
    width, height = [(30, 20), (20, 30), (20, 20)][i % 3]
    box = {"bbox": [1.0, 2.0, 3.0, 4.0 + i], "bbox_mode": 1, "category_id": i % 5 % 3}
    return {"file_name": f"/a/{i}.jpg", "width": width, "height": height, "annotations": [box]}


@pytest.fixture
def cfg(request):
    name = request.node.name
    DatasetCatalog.register(name, lambda: [record(i) for i in range(NUM_IMAGES)])
    MetadataCatalog.get(name).thing_classes = ["a", "b", "c"]
    cfg = get_cfg()
    add_retinanet_config(cfg)
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.7
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.8
    cfg.SOLVER.IMS_PER_BATCH = 3
    yield cfg
    DatasetCatalog.remove(name)


def augmented(record):
    """A mapper that draws from every generator."""
    draws = [random.random(), np.random.rand(), torch.rand(()).item()]
    return {"file_name": record["file_name"], "width": record["width"], "draws": draws}


def batches(cfg, count, mapper=augmented, start=0, seed=5):
    loader = TrainingLoader(cfg, mapper)
    loader.seed, loader.start = seed, start
    return list(itertools.islice(loader, count))


def names(batches):
    return [[sample["file_name"] for sample in batch] for batch in batches]


@pytest.mark.parametrize("is_grouped", [True, False])
def test_the_order_is_detectron2s(cfg, is_grouped):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = is_grouped
    seeded = cfg.clone()
    seeded.SEED = 5  # the newest main's samplers take it; others draw theirs
    with unchanged_random_states():
        np.random.seed(5)
        stock = build_detection_train_loader(seeded, mapper=lambda record: record)
    assert names(batches(cfg, 40)) == names(itertools.islice(stock, 40))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("is_grouped", [True, False])
def test_a_training_that_goes_on_sees_what_it_would_have_seen(cfg, sampler, is_grouped):
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = is_grouped
    whole = batches(cfg, 30)
    assert names(batches(cfg, 30, seed=6)) != names(whole)
    for start in (1, 17):
        np.random.seed(start)  # a process begins with other random numbers
        assert batches(cfg, 30 - start, start=start) == whole[start:]


@pytest.mark.parametrize("is_grouped", [True, False])
def test_workers_change_nothing(cfg, is_grouped):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = is_grouped
    whole = batches(cfg, 12)
    cfg.DATALOADER.NUM_WORKERS = 4
    assert batches(cfg, 9, start=3) == whole[3:]


@pytest.mark.parametrize("is_grouped", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_processes_go_on_with_the_batches_of_those_that_began(
    cfg, sampler, is_grouped, monkeypatch
):
    """Each process begins as a process of Detectron2's; together they have the same batches."""
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.ASPECT_RATIO_GROUPING = sampler, is_grouped
    cfg.SOLVER.IMS_PER_BATCH = 4
    monkeypatch.setattr(comm, "shared_random_seed", lambda: np.random.randint(2**31))

    def of_processes(num, num_began, start=0):
        monkeypatch.setattr(comm, "get_world_size", lambda: num)
        parts = []
        for rank in range(num):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            loader = TrainingLoader(cfg, augmented)
            loader.seed, loader.start, loader.num_streams = 5, start, num_began
            parts.append(list(itertools.islice(loader, 12)))
        return [list(itertools.chain(*batch)) for batch in zip(*parts)]

    two = of_processes(2, 2)
    for num in (1, 4):
        assert of_processes(num, 2) == two
        cfg.DATALOADER.NUM_WORKERS = 3
        assert of_processes(num, 2, start=7)[:5] == two[7:]
        cfg.DATALOADER.NUM_WORKERS = 0


def test_each_image_of_an_epoch_is_augmented_in_its_own_way(cfg):
    draws = [tuple(sample["draws"]) for batch in batches(cfg, 20) for sample in batch]
    assert len(set(draws)) == 60
    for of_a_generator in zip(*draws):
        assert len(set(of_a_generator)) == 60


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_is_replaced_by_one_that_depends_on_its_place_alone(cfg, num_workers):
    cfg.DATALOADER.NUM_WORKERS = num_workers
    bad = {f"/a/{i}.jpg" for i in (0, 3, 7, 22)}
    whole = batches(cfg, 30)
    replaced = batches(cfg, 30, lambda r: None if r["file_name"] in bad else augmented(r))
    after = batches(cfg, 13, lambda r: None if r["file_name"] in bad else augmented(r), start=17)
    assert after == replaced[17:]
    assert bad & set(itertools.chain(*names(whole)))
    assert not bad & set(itertools.chain(*names(replaced)))
    for before, now in zip(itertools.chain(*whole), itertools.chain(*replaced)):
        assert before["file_name"] in bad or before == now
        assert (before["width"] > 20) == (now["width"] > 20)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_of_users_come_out_as_they_are(cfg, num_workers):
    cfg.DATALOADER.NUM_WORKERS = num_workers

    def refuse(record):
        raise UserError("a.jpg is no image: mend it")

    with pytest.raises(UserError, match=r"^a.jpg is no image: mend it$"):
        batches(cfg, 1, refuse)
    with pytest.raises(UserError, match=r"^none of the 23 images to train on can be read: [^\n]*$"):
        batches(cfg, 1, lambda record: None)


def test_loading_draws_nothing_from_the_random_numbers_of_the_steps(cfg):
    def draws():
        return random.random(), np.random.rand(), torch.rand(()).item()

    seed_generators(1, 2, 3)
    expected = draws()
    for cfg.DATALOADER.NUM_WORKERS in (0, 2):
        seed_generators(1, 2, 3)
        batches(cfg, 2)
        assert draws() == expected
    seed_generators(1, 2, 4)
    assert not set(draws()) & set(expected)


def test_what_is_done_every_so_often_sees_the_same_whenever_it_was_done_before(cfg):
    iteration = 9
    loader = TrainingLoader(cfg, augmented)
    loader.seed = 5
    inputs = iter(Restarted(loader, lambda: iteration))
    of_nine = [next(inputs) for _ in range(3)]
    iteration = 19
    of_nineteen = [next(inputs) for _ in range(3)]
    assert [next(iter(Restarted(loader, lambda: 19)))] == of_nineteen[:1]
    assert of_nine == batches(cfg, 3, start=9)
    assert of_nineteen == batches(cfg, 3, start=19)


def test_fingerprint_tells_what_changed(cfg):
    def of(change=lambda records: None):
        records = [record(i) for i in range(NUM_IMAGES)]
        change(records)
        return fingerprint(cfg.DATASETS.TRAIN, records)

    def changed(change):
        now = of(change)
        return {key for key, value in of().items() if value != now[key]}

    assert changed(lambda r: None) == set()
    assert of()["classes"] == ["a", "b", "c"]
    assert changed(lambda r: r[3].update(file_name="/elsewhere/3.jpg")) == set()
    assert changed(lambda r: r[3].update(file_name="/a/new.jpg")) == {"files"}
    assert changed(lambda r: r.reverse()) == {"files", "annotations"}
    assert changed(lambda r: r.pop()) == {"num_images", "files", "annotations"}
    assert changed(lambda r: r[3]["annotations"][0].update(bbox=[0, 2, 3, 4])) == {"annotations"}
    assert changed(lambda r: r[3]["annotations"][0].update(category_id=2)) == {"annotations"}
    assert changed(lambda r: r[4]["annotations"].append(r[3]["annotations"].pop())) == {
        "annotations"
    }
