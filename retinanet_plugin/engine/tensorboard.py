"""What TensorBoard shows beside Detectron2's scalars: detections on the same images, each time."""

import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from ..data.loading.mapper import RetinaNetMapper
from ..report.detections.boxes import detections_of, truth_of
from ..report.detections.matching import match_detections
from ..report.detections.overlaps import find_overlaps
from ..report.detections.pictures import draw_pairs
from ..report.detections.shown_boxes import shown_boxes
from ..report.drawing import evenly_spread, pixels_of

logger = logging.getLogger("detectron2.watch")

SCORE_THRESH = 0.5  # lowest score that is drawn


class ValidationPictures:
    """Draws truth and detections of some images of the first test set into the event storage.

    Hits, misses and false alarms are those of ``report``. A training is the same with and
    without: the model is in evaluation meanwhile, and no random number is drawn.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: ``TEST.NUM_PICTURES`` images, spread over those that have boxes; 0: none.
        """
        self._cfg = cfg
        self._is_on = cfg.TEST.NUM_PICTURES > 0 and len(cfg.DATASETS.TEST) > 0
        self._images: list[dict[str, Any]] = []

    def draw(self, model: nn.Module) -> None:
        """Draw what the model finds now; of several processes, the first one does.

        What fails is said once, and nothing is drawn from then on.

        Args:
            model: the bare model.
        """
        if not self._is_on or not comm.is_main_process():
            return
        name = self._cfg.DATASETS.TEST[0]
        try:
            self._images = self._images or self._choose(name)
            if self._images:
                self._draw(model, name)
        except Exception as error:
            self._is_on = False
            logger.warning(
                f"detections on {name} cannot be drawn for TensorBoard ({type(error).__name__}: "
                f"{error}), and are left out from here on: the training goes on"
            )

    def _choose(self, name: str) -> list[dict[str, Any]]:
        records = get_detection_dataset_dicts([name], filter_empty=False)
        records = [record for record in records if record.get("annotations")]
        return [records[i] for i in evenly_spread(len(records), self._cfg.TEST.NUM_PICTURES)]

    def _draw(self, model: nn.Module, name: str) -> None:
        images, found = self._detect(model)
        if not images:
            return
        class_names = list(MetadataCatalog.get(name).thing_classes)
        truth = truth_of(images, class_names, list(range(len(class_names))))
        detections = detections_of(found)
        matches = match_detections(detections, truth, find_overlaps(detections, truth))
        boxes = [
            shown_boxes(truth, detections, matches, i, SCORE_THRESH) for i in range(len(images))
        ]
        figure, _ = draw_pairs(images, boxes, SCORE_THRESH)
        pixels = pixels_of(figure).transpose(2, 0, 1)
        get_event_storage().put_image(f"validation/{name}", pixels)

    @torch.no_grad()
    def _detect(self, model: nn.Module) -> tuple[list[dict[str, Any]], list[Instances]]:
        """The images that can be read, and what is found in each."""
        mapper = RetinaNetMapper(self._cfg, is_train=False)
        images, found = [], []
        was_training = model.training
        model.eval()
        try:
            for image in self._images:
                sample = mapper(image)
                if sample is None:  # DATASETS.SKIP_BAD_IMAGES
                    continue
                images.append(image)
                found.append(model([sample])[0]["instances"].to("cpu"))
        finally:  # which Detectron2's inference_context does not do after an error
            model.train(was_training)
        return images, found
