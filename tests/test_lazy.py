"""The lazy config: the model of the YAML config, trained as Detectron2's own script trains it."""

import shutil
from pathlib import Path

import detectron2
import pytest
import torch
from conftest import ROOT, assert_equal_detections, detect, make_batch, train_step
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, default_writers, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from omegaconf import OmegaConf

from retinanet_plugin.config import load_config
from retinanet_plugin.data.loading.mapper import RetinaNetMapper

LAZY = ROOT / "configs/lazy/retinanet_R_50_FPN.py"
YAML = ROOT / "configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml"


@pytest.fixture
def lazy_cfg():
    return LazyConfig.load(str(LAZY))


@pytest.fixture(scope="module")
def pair():
    """The models of the lazy config and of the YAML config, with the same weights."""
    torch.manual_seed(0)
    cfg = load_config(str(YAML), ["MODEL.DEVICE", "cpu"])
    lazy, plain = instantiate(LazyConfig.load(str(LAZY)).model), build_model(cfg)
    weights = lazy.state_dict()
    for name, weight in weights.items():
        if name.endswith("conv3.norm.weight"):
            weight.fill_(0.2)  # or the outputs of 16 untrained blocks grow out of all bounds
    torch.nn.init.normal_(lazy.head.cls_score.weight, std=0.2)
    torch.nn.init.constant_(lazy.head.cls_score.bias, -4.0)
    plain.load_state_dict(weights)
    return lazy, plain


def settings(part):
    """What was said to a part when it was built: its attributes, but for modules and tensors."""
    values = {key: value for key, value in vars(part).items() if not key.startswith("_")}
    if "box2box_transform" in values:
        values["box2box_transform"] = vars(values["box2box_transform"])
    return values


def test_names_shapes_and_frozen_weights_are_those_of_the_yaml_config(pair):
    lazy, plain = (
        {name: (p.shape, p.requires_grad) for name, p in model.state_dict(keep_vars=True).items()}
        for model in pair
    )
    assert lazy == plain


def test_every_part_is_that_of_the_yaml_config(pair):
    lazy, plain = pair
    assert repr(lazy) == repr(plain)
    assert settings(lazy) == settings(plain)
    for part in ("anchor_generator", "head", "matcher", "cls_loss", "box_loss", "inference"):
        assert settings(getattr(lazy, part)) == settings(getattr(plain, part))
    buffers = dict(plain.named_buffers())  # pixel_mean, pixel_std, the anchors of each level
    for name, buffer in lazy.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_losses_and_detections_are_those_of_the_yaml_config(pair):
    batch = make_batch(80, num_boxes=(2,), sizes=((64, 96),))
    start = {name: value.clone() for name, value in pair[0].state_dict().items()}
    (losses, _), (wanted, _) = (train_step(model, batch) for model in pair)
    assert losses == wanted
    for model in pair:
        model.load_state_dict(start)
        model.zero_grad()
    assert_equal_detections(*(detect(model, batch) for model in pair))


def test_training_settings_are_those_of_the_yaml_config(lazy_cfg):
    cfg = load_config(str(YAML))
    train, test = lazy_cfg.dataloader.train, lazy_cfg.dataloader.test
    resize = train.mapper.augmentations[0]
    assert (train.dataset.names,) == cfg.DATASETS.TRAIN
    assert (test.dataset.names,) == cfg.DATASETS.TEST
    assert train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert (resize.short_edge_length, resize.max_size) == (
        cfg.INPUT.MIN_SIZE_TRAIN,
        cfg.INPUT.MAX_SIZE_TRAIN,
    )
    assert test.mapper.augmentations[0].short_edge_length == cfg.INPUT.MIN_SIZE_TEST
    assert test.mapper.image_format == train.mapper.image_format == cfg.INPUT.FORMAT
    assert lazy_cfg.dataloader.evaluator.detections_per_image == cfg.TEST.DETECTIONS_PER_IMAGE
    assert lazy_cfg.optimizer.lr == cfg.SOLVER.BASE_LR
    assert lazy_cfg.optimizer.momentum == cfg.SOLVER.MOMENTUM
    assert lazy_cfg.optimizer.weight_decay == cfg.SOLVER.WEIGHT_DECAY
    assert lazy_cfg.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy_cfg.train.init_checkpoint == cfg.MODEL.WEIGHTS

    multiplier = instantiate(lazy_cfg.lr_multiplier)
    factors = [multiplier(i / cfg.SOLVER.MAX_ITER) for i in (0, 1000, 59999, 60000, 80000)]
    assert factors == pytest.approx([cfg.SOLVER.WARMUP_FACTOR, 1.0, 1.0, 0.1, 0.01])


def test_training_settings_are_those_of_detectron2s_own_lazy_config(lazy_cfg):
    package = Path(detectron2.__file__).parent
    folders = [package / "model_zoo/configs", package.parent / "configs"]
    files = [folder / "COCO-Detection/retinanet_R_50_FPN_1x.py" for folder in folders]
    files = [file for file in files if file.is_file()]
    if not files:
        pytest.skip("this Detectron2 was installed without its configs: a checkout has them")
    ours, stock = (
        OmegaConf.to_container(cfg, resolve=False)
        for cfg in (lazy_cfg, LazyConfig.load(str(files[0])))
    )
    for cfg in (ours, stock):
        del cfg["model"], cfg["dataloader"]["evaluator"]
    for split in ("train", "test"):
        mapper = ours["dataloader"][split]["mapper"]
        assert mapper.pop("skip_bad_images") is False
        assert mapper["_target_"] is RetinaNetMapper
        mapper["_target_"] = stock["dataloader"][split]["mapper"]["_target_"]
    assert ours == stock


def test_a_number_that_several_parts_need_is_written_once(lazy_cfg):
    cfg = LazyConfig.apply_overrides(
        lazy_cfg,
        [
            "model.num_classes=3",
            "model.backbone.out_channels=64",
            "model.inference.box2box_transform.weights=[10.0,10.0,5.0,5.0]",
            "model.inference.max_detections_per_image=300",
        ],
    )
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert model.num_classes == model.matcher.num_classes == 3
    assert model.head.cls_score.out_channels == 9 * 3
    assert model.head.cls_score.in_channels == model.backbone.top_block.p7.out_channels == 64
    assert model.box_loss.weights == (10.0, 10.0, 5.0, 5.0)
    assert cfg.dataloader.evaluator.detections_per_image == 300


def train(cfg):
    """What Detectron2's tools/lazyconfig_train_net.py does, which no package holds."""
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), instantiate(cfg.optimizer))
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    results = {}

    def evaluate():
        results.update(
            inference_on_dataset(
                model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
            )
        )

    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
            hooks.EvalHook(cfg.train.eval_period, evaluate),
            hooks.PeriodicWriter(
                default_writers(cfg.train.output_dir, cfg.train.max_iter),
                period=cfg.train.log_period,
            ),
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=False)
    trainer.train(0, cfg.train.max_iter)
    return model, results


OWN_CONFIG = """
from detectron2.config import LazyCall as L

from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.losses import IoUBoxLoss, giou_loss

from .retinanet_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

register_coco_json({entries})
dataloader.train.dataset.names = "{train}"
dataloader.test.dataset.names = "{val}"
model.num_classes = 10
model.box_loss = L(IoUBoxLoss)(weights=model.box_loss.weights, iou_loss=giou_loss)
# Without pretrained weights, frozen batch norms would do nothing.
_resnet = model.backbone.bottom_up
_resnet.freeze_at = 0
_resnet.stem.norm = _resnet.stages.norm = "BN"
dataloader.train.mapper.augmentations[0].short_edge_length = 96
dataloader.test.mapper.augmentations[0].short_edge_length = 96
"""


def test_trains_on_own_data_with_a_config_that_builds_on_it(digits_entries, tmp_path):
    shutil.copy(LAZY, tmp_path)
    names = {"train": digits_entries[0][0], "val": digits_entries[1][0]}
    own = tmp_path / "own.py"
    own.write_text(OWN_CONFIG.format(entries=digits_entries, **names))
    cfg = LazyConfig.apply_overrides(
        LazyConfig.load(str(own)),
        [
            f"train.output_dir={tmp_path / 'output'}",
            "train.init_checkpoint=''",
            "train.device=cpu",
            "train.max_iter=2",
            "dataloader.train.total_batch_size=2",
            "dataloader.train.num_workers=0",
            "dataloader.test.num_workers=0",
        ],
    )
    LazyConfig.save(cfg, str(tmp_path / "saved.yaml"))
    model, results = train(cfg)
    assert set(results) == {"bbox"}
    assert (tmp_path / "output/inference/coco_instances_results.json").is_file()

    # The config that a run leaves beside its weights builds the model that they fit.
    with torch.device("meta"):
        saved = instantiate(LazyConfig.load(str(tmp_path / "saved.yaml")).model)
    assert repr(saved) == repr(model)
    weights = torch.load(tmp_path / "output/model_final.pth", weights_only=True)["model"]
    assert {k: v.shape for k, v in weights.items()} == {
        k: v.shape for k, v in saved.state_dict().items()
    }
    assert weights["loss_normalizer"] != 100
