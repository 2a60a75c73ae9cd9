"""What the tests share: small configs, small batches, a small data set on disk."""

import json
import logging
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import logger as d2_logger
from detectron2.utils.logger import setup_logger
from torch.utils._python_dispatch import TorchDispatchMode

from retinanet_plugin import add_retinanet_config
from retinanet_plugin.config import load_config
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.data.digits import write_digits
from retinanet_plugin.engine.console_log import for_the_log
from retinanet_plugin.execution.cpu_conv import context, winograd

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # train_net.py
# A shell makes what it starts with & ignore Ctrl-C; so would this process, and all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Tests marked ``gpu`` need one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_log():
    """Trainings set up Detectron2's log for the whole process: each test has its own."""
    logger = logging.getLogger("detectron2")
    before = list(logger.handlers), logger.level, logger.propagate
    yield
    handlers, level, logger.propagate = before
    logger.handlers[:] = handlers
    logger.setLevel(level)
    setup_logger.cache_clear()  # or it would not set up the next test's
    d2_logger._LOG_COUNTER.clear()  # what is said once in a process is said once in a test
    for_the_log.setTarget(None)  # or what is said next would go to this test's log.txt
    for_the_log.buffer.clear()


def forget(*names):
    """Take data sets out of Detectron2's catalogs, where an earlier call may have put them."""
    for name in names:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


NEEDS_TRITON = "no Triton 3.2 or later: PyTorch's CUDA builds for Linux bring it"


@pytest.fixture(scope="session")
def triton_interpreter():
    """Calls functions in a process where Triton runs kernels with NumPy in place of a GPU.

    A process of its own, because Triton reads the variable as it is imported.
    """
    pytest.importorskip("triton", minversion="3.2", reason=NEEDS_TRITON)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(int).result()  # starts the process
        yield lambda function, *args: pool.submit(function, *args).result()


@pytest.fixture
def small_cfg():
    """The paper's RetinaNet on a ResNet-18 with 64 channels: fast, and alike in every part."""
    cfg = get_cfg()
    add_retinanet_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/Base-RetinaNet.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.RETINANET.NUM_CONVS = 2
    cfg.MODEL.RETINANET.NUM_CLASSES = 5
    return cfg


@pytest.fixture
def fast_cpu_conv(monkeypatch):
    """The fast convolutions run on this processor, and on small models; a list of their calls."""
    monkeypatch.setattr(context, "PROCESSOR_GAINS", True)
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_TILES", 1)
    calls = []
    for algorithm in context.ALGORITHMS:
        for name in ("convolve", "gradients"):
            monkeypatch.setattr(algorithm, name, _noted(getattr(algorithm, name), calls))
    return calls


def _noted(function, calls):
    def call(*args):
        calls.append(function)
        return function(*args)

    return call


def build_pair(cfg):
    """This package's model and stock's, with the same weights."""
    stock_cfg = cfg.clone()
    stock_cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    stock_cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    model, stock = build_model(cfg), build_model(stock_cfg)
    # New heads score every anchor alike. With these weights many scores are 1, so that the order
    # of equal scores is compared as well.
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.05)
    torch.nn.init.constant_(model.head.cls_score.bias, -4.0)
    weights = model.state_dict()
    weights.pop("loss_normalizer")
    stock.load_state_dict(weights)
    return model, stock


def train_step(model, batch):
    """Losses of a training step, and the gradients by name."""
    losses = model.train()(batch)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def detect(model, batch):
    """The ``Instances`` of each image."""
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(batch)]


def assert_equal_training(found, expected):
    """Losses and gradients of :func:`train_step` agree as the contract of this package says."""
    (losses, grads), (wanted_losses, wanted_grads) = found, expected
    assert losses.keys() == wanted_losses.keys() == {"loss_cls", "loss_box_reg"}
    for name, loss in losses.items():
        torch.testing.assert_close(loss, wanted_losses[name], rtol=1e-5, atol=1e-7)
    assert grads.keys() == wanted_grads.keys()
    for name, grad in grads.items():
        wanted = wanted_grads[name]
        # Next to nothing: the bias before a batch norm, whose gradient is rounding alone.
        assert (grad - wanted).norm() <= 2e-4 * wanted.norm() + 1e-6, name


def assert_equal_detections(found, expected):
    """The ``Instances`` of images agree as the contract of this package says."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert ours.image_size == theirs.image_size
        assert len(ours) == len(theirs) > 0
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-5)
        boxes, wanted = ours.pred_boxes.tensor, theirs.pred_boxes.tensor
        torch.testing.assert_close(boxes, wanted, rtol=0, atol=0.01)


def make_batch(num_classes, num_boxes=(3, 5), sizes=((96, 128), (120, 90))):
    """Training inputs as DatasetMapper makes them: images of unequal sizes, random boxes."""
    batch = []
    for (height, width), count in zip(sizes, num_boxes):
        size = torch.tensor([width, height])
        corners = torch.rand(count, 2) * size * 0.6
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(
            torch.cat([corners, corners + 4 + torch.rand(count, 2) * 0.35 * size], dim=1)
        )
        instances.gt_classes = torch.randint(num_classes, (count,))
        image = torch.randint(256, (3, height, width), dtype=torch.uint8)
        batch.append(
            {"image": image, "instances": instances, "height": 2 * height, "width": 2 * width}
        )
    return batch


class DeviceOperations(TorchDispatchMode):
    """Notes the operations on tensors, with their name and whether they join several devices."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in (*args, out) if isinstance(x, torch.Tensor)}
        self.found.append((str(func), len(devices) > 1))
        return out

    def copies(self):
        """Those that copy from one device to another: they wait, too."""
        return [name for name, crosses in self.found if crosses and "copy" in name]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder with eight training and four val images of the digits data set."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(str(folder), seed=1, num_images={"train": 8, "val": 4})
    return folder


@pytest.fixture
def digits_entries(digits, request):
    """Entries of ``DATASETS.COCO_JSON`` for the digits, under names of this test's own."""
    test = request.node.name
    return [
        (f"{test}_{split}", str(digits / "annotations" / f"{split}.json"), str(digits / split))
        for split in ("train", "val")
    ]


@pytest.fixture
def instant_cfg(digits_entries, tmp_path):
    """The config of two iterations on the digits, all in this process; nothing is built yet."""
    register_coco_json(digits_entries)
    (train, *_), (val, *_) = digits_entries
    cfg = load_config(str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml"))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), (val,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


@pytest.fixture
def broken_annotations(digits, tmp_path):
    """``broken_annotations(change)``: the path of a val.json that ``change(coco)`` has edited."""

    def write(change):
        coco = json.loads((digits / "annotations/val.json").read_text())
        change(coco)
        path = tmp_path / "broken.json"
        path.write_text(json.dumps(coco))
        return str(path)

    return write


@pytest.fixture(scope="session")
def detector(tmp_path_factory):
    """See :class:`small_detector.SmallDetector`."""
    from small_detector import write_small_detector

    config = ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml"
    return write_small_detector(tmp_path_factory.mktemp("detector"), str(config))


@pytest.fixture
def clean_env():
    """The environment for subprocesses: this checkout first, one thread."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
