"""An exported file that predicts: other programs compute the network, this package the rest."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator, detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..config_merging import merge_options
from ..errors import UserError
from ..inference import RetinaNetInference
from ..weights.checkpoint_contents import config_of
from .pictures import Preprocessing

# From images (N, C, H, W), float32, to what ExportedGraph returns.
Runner = Callable[[np.ndarray], Sequence[np.ndarray]]


class ExportedNetwork:
    """A file of ``export``; see :class:`retinanet_plugin.deploy.networks.Network`."""

    runs_on_cpu = False  # with PyTorch

    def __init__(self, path: str, opts: Sequence[str]) -> None:
        """
        Raises:
            UserError: the file cannot be read, was not written by ``export``, or the package that
                runs it is not installed.
        """
        self._run, notes = RUNNERS[os.path.splitext(path)[1]](path)
        try:
            described = {key: json.loads(text) for key, text in notes.items()}
            self.cfg = config_of(described["config"], path)
            self._divisor = int(described["padding"]["divisor"])
            self.class_names = [str(name) for name in described["class_names"]]
            self._strides = [int(level["stride"]) for level in described["anchors"]]
            self._detects = described["decoding"]["in_graph"]
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{path} {_lack(notes)}: export it with python -m retinanet_plugin export"
            ) from error
        before = self.cfg.clone()
        merge_options(self.cfg, opts)
        if self._detects and self.cfg != before:
            raise UserError(
                f"{path} has NMS and its thresholds in it, so no option changes what it detects: "
                "leave them out, or give them to export, as --opts"
            )
        self._decoder = _Decoder(self.cfg, self._strides)
        self.preprocessing = Preprocessing.of(self.cfg)

    def detect(self, batch: list[dict[str, Any]]) -> list[Instances]:
        height, width = batch[0]["image"].shape[1:]
        d = self._divisor
        padded = -(-height // d) * d, -(-width // d) * d
        images = np.empty((len(batch), len(self.cfg.MODEL.PIXEL_MEAN), *padded), np.float32)
        images[:] = np.float32(self.cfg.MODEL.PIXEL_MEAN).reshape(-1, 1, 1)
        for image, x in zip(images, batch):
            image[:, :height, :width] = x["image"]
        if self._detects:
            found = [self._detected(image[None], (height, width)) for image in images]
        else:
            outputs = [torch.as_tensor(x) for x in self._run(images)]
            found = self._decoder(outputs, padded, [(height, width)] * len(batch))
        return [
            detector_postprocess(instances, x["height"], x["width"])
            for instances, x in zip(found, batch)
        ]

    def _detected(self, image: np.ndarray, size: tuple[int, int]) -> Instances:
        boxes, scores, classes = (torch.as_tensor(x) for x in self._run(image))
        return Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)


def _lack(notes: dict[str, str]) -> str:
    """Why a file does not say what this version reads."""
    try:
        version = json.loads(notes["versions"])["retinanet_plugin"]
    except (KeyError, ValueError, TypeError):
        return "does not say what it was made from"
    return f"was exported by version {version} of this package, which described models otherwise"


class _Decoder:
    """From rows of all anchors to detections, as the model of a config has them."""

    def __init__(self, cfg: CfgNode, strides: Sequence[int]) -> None:
        self._strides = strides
        self._anchors = build_anchor_generator(cfg, [ShapeSpec(stride=s) for s in strides])
        self._inference = RetinaNetInference(cfg)

    def __call__(
        self, outputs: Sequence[Tensor], padded: tuple[int, int], sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        shapes = [tuple(-(-side // stride) for side in padded) for stride in self._strides]
        anchors = self._anchors([torch.empty(0, 0, *shape) for shape in shapes])
        counts = [len(boxes) for boxes in anchors]
        levels = [
            [
                level.unflatten(1, (*shape, -1))
                for level, shape in zip(rows.split(counts, dim=1), shapes)
            ]
            for rows in outputs
        ]
        logits, deltas, *ious = levels
        return self._inference(anchors, logits, deltas, sizes, *ious)


def import_openvino() -> Any:
    """The package, without the one by which it and NNCF tell their makers that they are used."""
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    import openvino

    return openvino


def in_a_thread(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` in a thread that ends.

    The thread that compiles a model for OpenVINO is given a stack for signals, whose memory goes
    with the model: from then on a signal, as of Ctrl-C, would crash the process.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def _open_onnx(path: str) -> tuple[Runner, dict[str, str]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    notes = session.get_modelmeta().custom_metadata_map
    return lambda images: session.run(None, {name: images}), notes


def _open_openvino(path: str) -> tuple[Runner, dict[str, str]]:
    openvino = import_openvino()
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    model = core.read_model(path)
    notes = model.get_rt_info(NOTES).value if model.has_rt_info(NOTES) else "{}"
    # float32 as it is written: some processors would compute in bfloat16.
    compiled = in_a_thread(core.compile_model, model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = list(compiled.outputs)

    def run(images: np.ndarray) -> list[np.ndarray]:
        results = compiled.create_infer_request().infer({0: images})
        return [np.array(results[output]) for output in outputs]

    return run, json.loads(notes)


def _open_program(path: str) -> tuple[Runner, dict[str, str]]:
    files = {NOTES: ""}
    module = torch.export.load(path, extra_files=files).module()

    def run(images: np.ndarray) -> list[np.ndarray]:
        try:
            with torch.no_grad():
                return [x.numpy() for x in module(torch.as_tensor(images))]
        except AssertionError as error:  # a guard of the program
            raise UserError(
                f"{path} does not take images of {images.shape[3]} x {images.shape[2]} pixels, "
                "resized and padded: take larger ones, or export to onnx"
            ) from error

    return run, json.loads(files[NOTES] or "{}")


# Under which the description of a graph is kept in files that have one text.
NOTES = "retinanet_plugin"
_PACKAGES = {".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "torch"}


def _opening(suffix: str, function: Callable[[str], tuple[Runner, dict[str, str]]]) -> Any:
    """``function`` with what goes wrong as a sentence."""

    def call(path: str) -> tuple[Runner, dict[str, str]]:
        if not os.path.isfile(path):
            raise UserError(f"{path} is not there: correct the path")
        try:
            return function(path)
        except ImportError as error:
            package = _PACKAGES[suffix]
            raise UserError(f"{path} needs a package: pip install {package}") from error
        except Exception as error:  # of a damaged file, these packages raise anything
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} cannot be read ({reason}): export it again") from error

    return call


RUNNERS = {
    suffix: _opening(suffix, function)
    for suffix, function in (
        (".onnx", _open_onnx),
        (".xml", _open_openvino),
        (".pt2", _open_program),
    )
}
