"""COCO's evaluation of boxes by faster-coco-eval: pycocotools' numbers in less of the time."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import COCOEvaluator
from faster_coco_eval import COCO, COCOeval_faster

from ...whole_files import write_whole_file


class BoxEvaluator(COCOEvaluator):
    """Detectron2's evaluator of boxes, of which another library computes the numbers."""

    def _eval_predictions(
        self, predictions: list[dict[str, Any]], img_ids: Sequence[Any] | None = None
    ) -> None:
        """As Detectron2's: write the detections, and fill ``self._results``."""
        found = [detection for image in predictions for detection in image["instances"]]
        classes = np.array([detection["category_id"] for detection in found], int)
        id_of = {v: k for k, v in self._metadata.thing_dataset_id_to_contiguous_id.items()}
        for detection in found:
            detection["category_id"] = id_of[detection["category_id"]]
        path = os.path.join(self._output_dir, "coco_instances_results.json")
        write_whole_file(path, lambda file: file.write(json.dumps(found).encode()))
        self._logger.info(f"The detections are in {path}")
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        evaluation = self._evaluate(found, classes, img_ids) if found else None
        self._results["bbox"] = self._derive_coco_results(
            evaluation, "bbox", class_names=self._metadata.thing_classes
        )

    def _evaluate(
        self, found: list[dict[str, Any]], classes: np.ndarray, img_ids: Sequence[Any] | None
    ) -> COCOeval_faster:
        """With images and categories numbered from 1 in their order: ids may be any text."""
        truth = self._coco_api.dataset
        number = {x: i for i, x in enumerate(sorted(x["id"] for x in truth["images"]), 1)}
        class_of = self._metadata.thing_dataset_id_to_contiguous_id
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in number.values()],
            "categories": [{"id": k + 1} for k in class_of.values()],
            "annotations": [
                {
                    **annotation,
                    "image_id": number[annotation["image_id"]],
                    "category_id": class_of[annotation["category_id"]] + 1,
                }
                for annotation in truth["annotations"]
            ],
        }
        coco.createIndex()
        image = [number[detection["image_id"]] for detection in found]
        boxes = [detection["bbox"] for detection in found]
        scores = [detection["score"] for detection in found]
        # The columns that faster-coco-eval has for results.
        results = np.column_stack([image, boxes, scores, classes + 1])
        evaluation = COCOeval_faster(
            coco, coco.loadRes(results), "bbox", print_function=self._logger.debug
        )
        evaluation.params.maxDets = self._max_dets_per_image
        if img_ids is not None:
            evaluation.params.imgIds = [number[x] for x in img_ids]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.print_function = self._logger.info  # the twelve metrics
        evaluation.summarize()
        return evaluation
