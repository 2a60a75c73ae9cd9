"""Detectron2's DefaultTrainer with evaluators, alpha from class counts, and CUDA graphs."""

import os

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm

from ..compat import coco_evaluator
from ..data.checks import check_evaluator_type
from ..data.class_alphas import resolve_auto_alpha
from ..execution.cuda_graphs import CudaGraphs, check_cuda_graphs


class Trainer(DefaultTrainer):
    """Detectron2's trainer; evaluates in COCO's or Pascal VOC's way, as the data set asks."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: ``MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS auto`` becomes numbers here, from
                the training data, which evaluation does not need.

        Raises:
            UserError: see :func:`retinanet_plugin.data.class_alphas.resolve_auto_alpha` and
                :func:`retinanet_plugin.execution.cuda_graphs.check_cuda_graphs`.
        """
        check_cuda_graphs(cfg, comm.get_world_size())
        super().__init__(resolve_auto_alpha(cfg))
        if cfg.MODEL.RETINANET.CUDA_GRAPH:
            # The optimizer and the checkpointer have the bare model and keep it, so checkpoints
            # are the same with graphs and without.
            self._trainer.model = CudaGraphs(self._trainer.model)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """The evaluator that the data set asks for; see :func:`check_evaluator_type`."""
        if check_evaluator_type(dataset_name) == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        return coco_evaluator(
            dataset_name,
            output_folder or inference_folder(cfg, dataset_name),
            cfg.TEST.DETECTIONS_PER_IMAGE,
        )


def inference_folder(cfg: CfgNode, dataset_name: str) -> str:
    """Where the evaluation of a data set leaves its detections: ``coco_instances_results.json``."""
    return os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
