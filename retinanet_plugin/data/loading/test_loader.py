"""The images of an evaluation."""

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.common import ToIterableDataset
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader

from .loader_workers import leave_signals_to_main_process
from .mapper import RetinaNetMapper


def build_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: RetinaNetMapper | None = None
) -> DataLoader:
    """Detectron2's loader of a test set, with :class:`RetinaNetMapper`, or ``mapper`` for more.

    With ``DATASETS.SKIP_BAD_IMAGES`` an image that cannot be read is left out: it has no
    detections, so that the evaluation counts its objects as not found. ``len`` of the loader still
    counts it.
    """
    mapper = mapper or RetinaNetMapper(cfg, is_train=False)
    if cfg.DATASETS.SKIP_BAD_IMAGES:
        records = DatasetFromList(
            get_detection_dataset_dicts([dataset_name], filter_empty=False), copy=False
        )
        # Of an indexed data set, Detectron2 would take another image in the place of a bad one.
        images = ToIterableDataset(records, InferenceSampler(len(records)))
        loader = build_detection_test_loader(
            images, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
        )
    else:
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
    loader.worker_init_fn = leave_signals_to_main_process
    return loader
