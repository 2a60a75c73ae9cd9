"""Writing a network as ONNX, as a program of PyTorch, or for OpenVINO."""

import contextlib
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..whole_files import write_whole_file
from .detecting_graph import CANDIDATES, DETECTIONS, KEPT, DetectingGraph, Kept, with_nms
from .exported_graph import INPUT, LEAST_DIVISORS, OUTPUTS, describe, dynamic_input, exported_graph
from .exported_network import NOTES, import_openvino, in_a_thread
from .pictures import Source
from .torch_network import TorchNetwork

# What each format is written by, and run to compare it with the network.
_PACKAGES = {"onnx": ["onnx", "onnxscript", "onnxruntime"], "openvino": ["openvino"]}


def check_packages(file_format: str, has_8_bits: bool) -> None:
    """
    Raises:
        UserError: a package is missing, which is better known before the work.
    """
    names = [*_PACKAGES.get(file_format, ()), *(["nncf"] if has_8_bits else ())]
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise _without(*missing)


def _without(*packages: str) -> UserError:
    return UserError(f"this export needs packages: pip install {' '.join(packages)}")


def write_onnx(network: TorchNetwork, path: str, nms: bool = False) -> None:
    """Write an ``.onnx`` file whose metadata have what :func:`describe` says.

    Args:
        nms: with decoding and NMS in the graph, for one image at a time.

    Raises:
        UserError: a package is missing, the model clips boxes before an NMS that is asked for, or
            the file cannot be written.
    """
    graph = exported_graph(network)
    (images,), shapes = dynamic_input(graph)
    with _in_peace("onnx", "onnxscript"):
        import onnx

        if nms:
            model = detecting_onnx(
                DetectingGraph(graph), images[:1], {i: shapes[INPUT][i] for i in (2, 3)}
            )
        else:
            names = OUTPUTS[: len(graph(images))]
            model = _onnx_of(graph, {INPUT: images}, (shapes[INPUT],), names)
        onnx.helper.set_model_props(model, describe(network, graph, nms))
        onnx.checker.check_model(model)
    content = model.SerializeToString()
    write_whole_file(path, lambda file: file.write(content))


def detecting_onnx(graph: DetectingGraph, image: Tensor, sides: dict[int, Any]) -> Any:
    """A model of ONNX that detects in an image: ``graph``, NMS, and what this keeps.

    Args:
        image: an example, (1, C, H, W).
        sides: what is variable of it.
    """
    detections, candidates = torch.export.Dim("detections"), torch.export.Dim("candidates")
    rows, classes = torch.arange(2), torch.arange(3)
    boxes, scores = torch.rand(3, 4), torch.rand(3)
    return with_nms(
        _onnx_of(graph, {INPUT: image}, (sides,), CANDIDATES),
        _onnx_of(
            Kept(graph.inference).eval(),
            dict(zip((KEPT, *CANDIDATES), (rows, boxes, scores, classes))),
            ({0: detections}, *[{0: candidates}] * len(CANDIDATES)),
            DETECTIONS,
        ),
        graph,
    )


def _onnx_of(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    shapes: tuple[dict[int, Any], ...],
    names: Sequence[str],
) -> Any:
    """``graph`` as a model of ONNX.

    Args:
        inputs: an example of each, by the names that they are to have.
        shapes: what is variable of them.
        names: of outputs.
    """
    program = torch.onnx.export(
        graph,
        tuple(inputs.values()),
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=list(inputs),
        output_names=names,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def write_program(network: TorchNetwork, path: str) -> None:
    """Write a ``.pt2`` file for ``torch.export.load``, with :func:`describe` as an extra file.

    Raises:
        UserError: images are too small for it, or the file cannot be written.
    """
    graph = exported_graph(network)
    least = LEAST_DIVISORS * graph.divisor
    if -(-network.preprocessing.min_size_test // graph.divisor) < LEAST_DIVISORS:
        raise UserError(
            f"INPUT.MIN_SIZE_TEST is {network.preprocessing.min_size_test}, and a program of "
            f"torch.export takes images of {least} pixels or more: export to onnx instead"
        )
    example, shapes = dynamic_input(graph)
    with _in_peace("torch"), torch.no_grad():
        program = torch.export.export(graph, example, dynamic_shapes=shapes)
    notes = json.dumps(describe(network, graph))
    write_whole_file(
        path, lambda file: torch.export.save(program, file, extra_files={NOTES: notes})
    )


def write_openvino(network: TorchNetwork, path: str, calibration: Sequence[Source]) -> None:
    """Write ``path``, an ``.xml``, and the weights beside it, a ``.bin``.

    Args:
        calibration: images from which the ranges of 8-bit integers are taken; none: float32.

    Raises:
        UserError: a package is missing, an image cannot be read, or a file cannot be written.
    """
    graph = exported_graph(network)
    example, shapes = dynamic_input(graph)
    with _in_peace("openvino", "nncf"), torch.no_grad():
        openvino = import_openvino()
        program = torch.export.export(graph, example, dynamic_shapes=shapes)
        model = openvino.convert_model(program)
        if calibration:
            model = in_a_thread(_quantized, model, network, graph.divisor, calibration)
    model.set_rt_info(json.dumps(describe(network, graph)), NOTES)
    stem = os.path.splitext(path)[0]
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
        # Beside it: a move within a disk is whole or not done. What is unfinished goes with it.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
            openvino.save_model(model, f"{unfinished}/model.xml", compress_to_fp16=False)
            # The .xml comes last: where it is, the weights are.
            os.replace(f"{unfinished}/model.bin", f"{stem}.bin")
            os.replace(f"{unfinished}/model.xml", path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be written ({error}): make room, or correct it") from error


def _quantized(model: Any, network: TorchNetwork, divisor: int, images: Sequence[Source]) -> Any:
    """``model`` with convolutions in 8 bits, by the ranges that values have in some images.

    All but the first: in 8 bits, that of the pixels alone costs several AP.
    """
    import nncf

    def padded(source: Source) -> np.ndarray:
        image = network.preprocessing.prepare(source)["image"].numpy()
        height, width = image.shape[1:]
        sides = -(-height // divisor) * divisor, -(-width // divisor) * divisor
        mean = np.float32(network.cfg.MODEL.PIXEL_MEAN).reshape(-1, 1, 1)
        batch = np.broadcast_to(mean, (len(mean), *sides)).copy()
        batch[:, :height, :width] = image
        return batch[None]

    operations = model.get_ordered_ops()  # from the input on
    first = next(x for x in operations if x.get_type_name() == "Convolution")
    return nncf.quantize(
        model,
        nncf.Dataset(images, padded),
        subset_size=len(images),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=[first.get_friendly_name()]),
    )


@contextlib.contextmanager
def _in_peace(*packages: str) -> Iterator[None]:
    """Without what exporters tell their developers, and with what goes wrong as a sentence."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "nncf")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise _without(*packages) from error
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
