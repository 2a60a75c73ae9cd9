"""Draw images as the training sees them: augmented, with boxes and the anchors that learn them.

The images are the first of a training with this config, through its own loader: with a SEED, the
same each time. Anchors that the matcher makes foreground are thin (of many, the two that fit each
box best), boxes that have none dotted, regions to ignore hatched. Data, config and model are
checked as before a training. With --test, images spread over the first of DATASETS.TEST, as they
are evaluated.
"""

import argparse
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.detection_utils import build_augmentation
from detectron2.utils.env import seed_all_rng
from matplotlib.figure import Figure

from ..data.checks import check_datasets
from ..data.findings import counted, one_line
from ..data.images.image_files import check_image_files
from ..data.loading.mapper import RetinaNetMapper
from ..engine import Trainer
from ..engine.checks.config_checks import check_values
from ..engine.checks.startup_log import log_on_console
from ..engine.console_log import quiet
from ..report.contact_sheet import draw_contact_sheet
from ..report.drawing import evenly_spread, save_figure
from ..report.names import can_be_drawn, name_without_font
from ..report.seen_images import seen_images
from ..weights.building import check_model
from .arguments import add_config_arguments, positive_number, read_config, shown_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="PNG", help="default: OUTPUT_DIR/browse.png, of --test browse_test.png"
    )
    parser.add_argument("--num-images", type=positive_number, default=12, help="default: 12")
    parser.add_argument("--test", action="store_true", help="images of DATASETS.TEST instead")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> None:
    cfg = read_config(args)
    with log_on_console():
        check_values(cfg, training=not args.test)
        facts = check_datasets(cfg, eval_only=args.test)
        check_image_files(facts, cfg)
        name = (cfg.DATASETS.TEST if args.test else cfg.DATASETS.TRAIN)[0]
        with quiet(logging.INFO):  # of the loader; images that are left out are warnings
            figure = sheet_of(cfg, facts[name].class_names, args.num_images, args.test)
    output = args.output or os.path.join(
        cfg.OUTPUT_DIR, "browse_test.png" if args.test else "browse.png"
    )
    save_figure(figure, output)
    for i, class_name in enumerate(facts[name].class_names):
        if not can_be_drawn(class_name):
            print(
                f"{name_without_font(i)} is {one_line(class_name)}, for which no font is installed"
            )
    print(f"drew {counted(len(figure.axes), 'image', 'images')} of {name}: {shown_path(output)}")


def sheet_of(
    cfg: CfgNode, class_names: Sequence[str], number: int, is_test: bool = False
) -> Figure:
    """A sheet of the first images of a training, or of images of an evaluation.

    Args:
        cfg: of which the data sets are registered; it is not changed.
        class_names: K.
        number: of images.
        is_test: whether ``DATASETS.TEST`` is drawn.

    Raises:
        UserError: the model cannot be built, or an image cannot be read.
    """
    cfg = cfg.clone()
    cfg.defrost()
    # No image goes through the model, and few through the loader.
    cfg.MODEL.DEVICE, cfg.MODEL.RETINANET.CUDA_GRAPH = "cpu", False
    cfg.DATALOADER.NUM_WORKERS = 0
    model = check_model(cfg)
    batches = _of_test(cfg, number) if is_test else _of_training(cfg)
    images = itertools.islice(seen_images(batches, model, cfg.INPUT.FORMAT), number)
    return draw_contact_sheet(list(images), class_names)


def _of_training(cfg: CfgNode) -> Iterator[list[dict[str, Any]]]:
    """The batches of a training with ``cfg``, from the first on."""
    if cfg.SEED >= 0:
        seed_all_rng(cfg.SEED)  # as Detectron2's default_setup does
    return iter(Trainer.build_train_loader(cfg))


def _of_test(cfg: CfgNode, number: int) -> Iterator[list[dict[str, Any]]]:
    """One by one, as an evaluation gives them to the model, with their boxes."""
    records = get_detection_dataset_dicts(cfg.DATASETS.TEST[:1], filter_empty=False)
    mapper = RetinaNetMapper(cfg, True, augmentations=build_augmentation(cfg, is_train=False))
    for i in evenly_spread(len(records), number):
        sample = mapper({"annotations": [], **records[i]})
        if sample is not None:  # DATASETS.SKIP_BAD_IMAGES
            yield [sample]
