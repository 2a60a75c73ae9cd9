"""Draw why the focal loss works: figures 1 and 4 of the paper, from this package's own functions.

Figure 1: the loss against the probability of the truth. Figure 4: how the loss is shared among the
entries of a trained model, over images of the first of DATASETS.TEST; MODEL.WEIGHTS names it.
"""

import argparse
import itertools
import os

import matplotlib
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.retinanet import permute_to_N_HWA_K

from ..data.checks import check_datasets
from ..engine import Checkpointer, check_weights
from ..errors import UserError
from ..losses import FocalLoss
from .arguments import add_config_arguments, positive_number, read_config

GAMMAS_1 = (0.0, 0.5, 1.0, 2.0, 5.0)
GAMMAS_4 = (0.0, 0.5, 1.0, 2.0)
BACKGROUND_ENTRIES = 50_000  # of an image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="default: OUTPUT_DIR")
    parser.add_argument(
        "--num-images", type=positive_number, default=500, help="most images (default: 500)"
    )


def run(args: argparse.Namespace) -> None:
    matplotlib.use("Agg")
    cfg = read_config(args)
    check_datasets(cfg, eval_only=True)
    check_weights(cfg.MODEL.WEIGHTS, required=True)
    output = args.output or cfg.OUTPUT_DIR
    os.makedirs(output, exist_ok=True)
    _draw_curves(os.path.join(output, "focal_loss_curves.png"))
    foreground, background = _errors(cfg, args.num_images)
    if len(foreground) == 0:
        raise UserError(f"{cfg.DATASETS.TEST[0]} has no boxes: choose an annotated data set")
    print(f"{len(foreground):,} foreground and {len(background):,} background entries")
    _draw_shares(foreground, background, os.path.join(output, "focal_loss_shares.png"))
    print(f"wrote focal_loss_curves.png and focal_loss_shares.png: {output}")


def _loss(errors: torch.Tensor, gamma: float) -> torch.Tensor:
    """``-(1 - p_t)^gamma log(p_t)`` of errors -x_t, without alpha, as figures 1 and 4 have it."""
    return FocalLoss(alpha=-1.0, gamma=gamma).loss_and_slope(errors)[0]


def _draw_curves(path: str) -> None:
    from matplotlib import pyplot as plt

    p_t = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    figure, axis = plt.subplots(figsize=(6, 4.5))
    for gamma in GAMMAS_1:
        axis.plot(p_t, _loss(-p_t.logit(), gamma), label=f"gamma = {gamma:g}")
    axis.axvspan(0.6, 1, color="0.92", zorder=0)
    axis.text(0.8, 2.8, "well-classified", ha="center")
    axis.set(xlabel="probability of the truth, p_t", ylabel="loss", ylim=(0, 5), xlim=(0, 1))
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


@torch.no_grad()
def _errors(cfg: CfgNode, num_images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """-x_t of foreground entries, and of entries of background anchors, in images of a data set.

    A foreground entry is an anchor's logit of its own class. Of an image's background, at most
    ``BACKGROUND_ENTRIES`` random ones are taken.
    """
    model = build_model(cfg).eval()
    report, _ = Checkpointer(model, cfg=cfg).load_model(cfg.MODEL.WEIGHTS)
    report.refuse_unless_it_fits()
    # With annotations as for training, at the size of testing.
    augmentations = build_augmentation(cfg, is_train=False)
    mapper = DatasetMapper(cfg, is_train=True, augmentations=augmentations)
    loader = build_detection_test_loader(cfg, cfg.DATASETS.TEST[0], mapper=mapper)
    generator = torch.Generator().manual_seed(0)
    foreground, background = [], []
    for batch in itertools.islice(loader, num_images):
        features = model.backbone(model.preprocess_image(batch).tensor)
        features = [features[name] for name in model.in_features]
        pred_logits, *_ = model.head(features)
        anchors = model.anchor_generator(features)
        gt_instances = [x["instances"].to(model.device) for x in batch]
        gt_labels, _ = model.label_anchors(anchors, gt_instances)
        logits = torch.cat(
            [permute_to_N_HWA_K(level, model.num_classes) for level in pred_logits], dim=1
        )
        is_class = (gt_labels >= 0) & (gt_labels < model.num_classes)
        own_class = gt_labels[is_class].unsqueeze(1)
        foreground.append(-logits[is_class].gather(1, own_class).flatten().cpu())
        entries = logits[gt_labels == model.num_classes].flatten().cpu()
        if len(entries) > BACKGROUND_ENTRIES:
            index = torch.randint(len(entries), (BACKGROUND_ENTRIES,), generator=generator)
            entries = entries[index]
        background.append(entries)
    return torch.cat(foreground), torch.cat(background)


def _draw_shares(foreground: torch.Tensor, background: torch.Tensor, path: str) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    entries = {"foreground": foreground, "background": background}
    for axis, (name, errors) in zip(axes, entries.items()):
        for gamma in GAMMAS_4:
            losses = _loss(errors.double(), gamma).sort().values
            share = losses.cumsum(0) / losses.sum()
            hardest = 100 * (1 - share[int(0.99 * len(share)) - 1])
            print(f"gamma {gamma:g}: the hardest 1 % of the {name} has {hardest:.0f} % of its loss")
            picked = torch.linspace(0, len(share) - 1, 2000).long()
            axis.plot((picked + 1) / len(share), share[picked], label=f"gamma = {gamma:g}")
        axis.set(xlabel=f"fraction of the {name} entries, easiest first", xlim=(0, 1), ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("cumulative share of the loss")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
