"""ResNet-50 and FPN on COCO, 1x: the model of ``COCO-Detection/retinanet_R_50_FPN_1x.yaml``.

A lazy config: every part is a call with its arguments written out, which Detectron2's
``tools/lazyconfig_train_net.py`` makes. Change an argument on the command line
(``model.num_classes=3 model.cls_loss.gamma=1.5``), or anything in a config of your own beside this
one, such as data in COCO's format and another box loss::

    from detectron2.config import LazyCall as L

    from retinanet_plugin.data.annotations.coco_json import register_coco_json
    from retinanet_plugin.losses import IoUBoxLoss, giou_loss

    from .retinanet_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

    register_coco_json([("mine_train", "train.json", "images"), ("mine_val", "val.json", "images")])
    dataloader.train.dataset.names = "mine_train"
    dataloader.test.dataset.names = "mine_val"
    model.num_classes = 3
    model.box_loss = L(IoUBoxLoss)(weights=model.box_loss.weights, iou_loss=giou_loss)
"""

import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

from retinanet_plugin import FocalLoss, IoUMatcher, ModularRetinaNet, RetinaNetHead
from retinanet_plugin.backbone import LastLevels
from retinanet_plugin.data.annotations.truth import coco_evaluator
from retinanet_plugin.data.loading.mapper import RetinaNetMapper
from retinanet_plugin.execution import Execution
from retinanet_plugin.inference import RetinaNetInference
from retinanet_plugin.losses import SmoothL1BoxLoss

model = L(ModularRetinaNet)(
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
            stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=True, norm="FrozenBN"),
            out_features=["res3", "res4", "res5"],
            freeze_at=2,
        ),
        in_features=["res3", "res4", "res5"],
        out_channels=256,
        # P6 from res5, which has 2048 channels.
        top_block=L(LastLevels)(
            in_channels=2048, out_channels="${..out_channels}", in_feature="res5"
        ),
    ),
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in [32, 64, 128, 256, 512]],
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128],
        offset=0.0,
    ),
    head=L(RetinaNetHead)(
        in_channels="${..backbone.out_channels}",
        num_levels=5,
        num_classes="${..num_classes}",
        num_anchors=9,  # three sizes, three ratios
        num_convs=4,
        norm="",
        prior_prob=0.01,
    ),
    matcher=L(IoUMatcher)(
        num_classes="${..num_classes}",
        iou_thresholds=[0.4, 0.5],
        iou_labels=[0, -1, 1],
        skip_unreached_boxes=False,
        low_quality_to_cause=False,
        memory_mb=16.0,
    ),
    cls_loss=L(FocalLoss)(alpha=0.25, gamma=2.0, triton=True),
    box_loss=L(SmoothL1BoxLoss)(weights="${..inference.box2box_transform.weights}", beta=0.0),
    inference=L(RetinaNetInference)(
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        score_thresh=0.05,
        topk_candidates=1000,
        nms_thresh=0.5,
        max_detections_per_image=100,
    ),
    execution=L(Execution)(bfloat16=False, channels_last=False, fast_cpu_conv=True, compile=False),
    num_classes=80,
    in_features=["p3", "p4", "p5", "p6", "p7"],
    pixel_mean=[103.530, 116.280, 123.675],
    pixel_std=[1.0, 1.0, 1.0],
    box_loss_weight=1.0,
    ignore_ioa_thresh=0.5,
    vis_period=0,
    input_format="BGR",
)

dataloader = {
    "train": L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_train"),
        mapper=L(RetinaNetMapper)(
            is_train=True,
            augmentations=[
                L(T.ResizeShortestEdge)(
                    short_edge_length=(640, 672, 704, 736, 768, 800),
                    sample_style="choice",
                    max_size=1333,
                ),
                L(T.RandomFlip)(horizontal=True),
            ],
            image_format="BGR",
            use_instance_mask=False,
            skip_bad_images=False,
        ),
        total_batch_size=16,
        num_workers=4,
    ),
    "test": L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
        mapper=L(RetinaNetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
            image_format="${...train.mapper.image_format}",
            skip_bad_images=False,
        ),
        num_workers=4,
    ),
    "evaluator": L(coco_evaluator)(
        dataset_name="${..test.dataset.names}",
        output_dir="${train.output_dir}/inference",
        detections_per_image="${model.inference.max_detections_per_image}",
    ),
}

optimizer = L(torch.optim.SGD)(
    # The script that trains sets params.model.
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0),
    lr=0.01,  # for 16 images a batch
    momentum=0.9,
    weight_decay=1e-4,
)

# Fractions of train.max_iter.
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[60000, 80000, 90000]),
    warmup_length=1000 / 90000,
    warmup_method="linear",
    warmup_factor=0.001,
)

# What tools/lazyconfig_train_net.py reads beside.
train = {
    "output_dir": "./output",
    "init_checkpoint": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    "max_iter": 90000,
    "amp": {"enabled": False},
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
    "checkpointer": {"period": 5000, "max_to_keep": 100},
    "eval_period": 5000,
    "log_period": 20,
    "device": "cuda",
}
