"""Reading weights from files of many makers, of which none can run code here."""

import contextlib
import json
import logging
import os
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
import torch
from detectron2.utils.file_io import PathManager

from ..errors import UserError
from ..whole_files import write_whole_file
from .safe_pickle import ArrayUnpickler, UnreadableError
from .torch_files import TOO_LARGE, check_start, open_file, read_checkpoint

logger = logging.getLogger("detectron2.checkpointer")

# Beside the weights, what a file says about them; Safetensors keeps these as texts of JSON.
NOTES = ("class_names", "preprocessing", "config", "versions", "__author__", "matching_heuristics")
# What other programs call the weights in their checkpoints; Detectron2 says "model".
_WEIGHTS = ("state_dict", "model_state_dict", "ema")
_NOTE_TYPES = {"class_names": (list, tuple), "preprocessing": (dict,), "config": (str,)}


def read_weights(
    path: str, source: str = "MODEL.WEIGHTS", *, skip_objects: bool = False
) -> dict[str, Any]:
    """Read weights as Detectron2 does, without running what a file may carry.

    Args:
        path: as in ``MODEL.WEIGHTS``: a file, or an address such as ``https://`` and
            ``detectron2://``, perhaps with ``?matching_heuristics=True`` behind it. Files of
            PyTorch, ``.safetensors``, pickles of Detectron2's and Caffe2's zoos, pycls' ``.pyth``.
        source: what names the file, for errors.
        skip_objects: as of :func:`read_checkpoint`, for what a file of PyTorch holds beside them.

    Returns:
        dict: ``model`` (dict of tensors or arrays), and what else the file holds; with
        ``matching_heuristics`` if the names are to be matched with a model's.

    Raises:
        UserError: the file is missing, damaged, holds something else, or would run code.
    """
    path, uses_heuristics = without_query(path)
    try:
        suffix = os.path.splitext(path.partition("?")[0])[1]
        content = _read(_local_file(path), suffix, skip_objects)
    except UnreadableError as error:
        raise UserError(f"{source} {path} {error}") from error
    checkpoint = checked_weights(content, f"{source} {path}")
    if uses_heuristics:
        checkpoint["matching_heuristics"] = True
    return checkpoint


def checked_weights(content: dict[str, Any], source: str) -> dict[str, Any]:
    """What was read from a file, if it can be loaded into a model.

    Args:
        content: of :func:`read_checkpoint`, say; it is changed.
        source: what names the file, for errors.

    Returns:
        dict: as :func:`read_weights` does.

    Raises:
        UserError: its ``model`` holds something else than weights.
    """
    others = (name for name in _WEIGHTS if content.get(name) and isinstance(content[name], dict))
    name = "model" if "model" in content else next(others, None)
    checkpoint = {**content, "model": content[name]} if name else {"model": content}
    try:
        _check_arrays(checkpoint["model"])
    except UnreadableError as error:
        raise UserError(f"{source} {error}") from error
    _leave_out_wrong_notes(checkpoint, source)
    return checkpoint


def write_weights(path: str, checkpoint: dict[str, Any]) -> None:
    """Write ``model`` and :data:`NOTES` of a checkpoint to ``path``, .safetensors or .pth.

    Raises:
        UserError: another kind of file, or it cannot be written.
    """
    notes = {key: checkpoint[key] for key in NOTES if key in checkpoint}
    tensors = {key: torch.as_tensor(x) for key, x in checkpoint["model"].items()}
    if path.endswith(".safetensors"):
        save = _safetensors().torch.save
        # Safetensors refuses tensors that share memory.
        tensors = {key: x.detach().cpu().clone().contiguous() for key, x in tensors.items()}
        texts = {key: json.dumps(value, default=str) for key, value in notes.items()}
        write_whole_file(path, lambda file: file.write(save(tensors, metadata=texts)))
    elif path.endswith(".pth"):
        write_whole_file(path, lambda file: torch.save({"model": tensors, **notes}, file))
    else:
        raise UserError(f"weights can be written as .safetensors or .pth, not {path}: rename it")


def without_query(path: str) -> tuple[str, bool]:
    """``path`` without ``matching_heuristics``, and whether that is asked for."""
    if "?" not in path or os.path.isfile(path):
        return path, False
    address, _, query = path.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    uses_heuristics = options.pop("matching_heuristics", "False") == "True"
    return address + ("?" + urlencode(options) if options else ""), uses_heuristics


def _local_file(path: str) -> str:
    """Files of the web are fetched into the cache once."""
    try:
        return PathManager.get_local_path(path)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UnreadableError(
            f"cannot be fetched ({reason}): download the file and set MODEL.WEIGHTS to its path"
        ) from error


def _read(path: str, suffix: str, skip_objects: bool) -> dict[str, Any]:
    with open_file(path) as file:
        start = file.read(64)
    # A file of Safetensors may have another name: the length of its header, then JSON.
    if suffix == ".safetensors" or start[8:9] == b"{":
        check_start(start)
        return _read_safetensors(path)
    if suffix == ".pkl" and not start.startswith(b"PK"):
        check_start(start)
        return _read_pickle(path)
    loaded = read_checkpoint(path, skip_objects=skip_objects)
    return _from_pycls(loaded) if suffix == ".pyth" else loaded


def _read_safetensors(path: str) -> dict[str, Any]:
    library = _safetensors()
    try:
        with library.safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (library.SafetensorError, ValueError, KeyError) as error:
        raise UnreadableError(
            f"is damaged, or no file of Safetensors ({' '.join(str(error).split())}): copy it anew"
        ) from error
    return {"model": tensors, **_notes_of(texts)}


def _notes_of(texts: dict[str, str]) -> dict[str, Any]:
    notes = {}
    for key in NOTES:
        if key in texts:
            # Metadata of other programs may have one of these names and be no JSON.
            with contextlib.suppress(ValueError):
                notes[key] = json.loads(texts[key])
    return notes


def _safetensors() -> Any:
    """The package, which is not installed everywhere."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError("files of Safetensors need a package: pip install safetensors") from error
    return safetensors


def _read_pickle(path: str) -> dict[str, Any]:
    with open_file(path) as file:
        try:
            data = ArrayUnpickler(file, encoding="latin1").load()
        except UnreadableError:
            raise
        except MemoryError as error:
            raise UnreadableError(TOO_LARGE) from error
        except Exception as error:  # of a damaged pickle, nearly anything is raised
            reason = " ".join(str(error).split())
            raise UnreadableError(
                f"is damaged, or no pickle ({reason}): copy or download it anew"
            ) from error
    if not isinstance(data, dict):
        raise UnreadableError(f"holds a {type(data).__name__} and no weights by name: correct it")
    if "model" in data and "__author__" in data:  # of Detectron2's zoo
        return data
    data = data.get("blobs", data)  # detectors of Caffe2 have them, ImageNet's networks do not
    data = {key: x for key, x in data.items() if not str(key).endswith("_momentum")}
    return {"model": data, "__author__": "Caffe2", "matching_heuristics": True}


def _from_pycls(loaded: dict[str, Any]) -> dict[str, Any]:
    if "model_state" not in loaded:
        raise UnreadableError("has no 'model_state', as files of pycls do: rename it to .pth")
    state = loaded["model_state"]
    state = {key: x for key, x in state.items() if not key.endswith("num_batches_tracked")}
    return {"model": state, "__author__": "pycls", "matching_heuristics": True}


def _check_arrays(model: Any) -> None:
    if not isinstance(model, dict) or not model:
        raise UnreadableError("holds no weights by name: give the file of a model's state_dict")
    for key, x in model.items():
        # A number of numpy is an array without dimensions.
        x = model[key] = np.asarray(x) if isinstance(x, np.generic) else x
        is_numbers = isinstance(x, torch.Tensor) or (
            isinstance(x, np.ndarray) and x.dtype.kind in "biuf"
        )
        if not isinstance(key, str) or not is_numbers:
            raise UnreadableError(
                f"holds a {type(x).__name__} as {key!r} where weights should be: save the model's "
                "state_dict under the name 'model'"
            )
        kind = _unusual_kind(x) if isinstance(x, torch.Tensor) else ""
        if kind:
            raise UnreadableError(
                f"holds {key} as a {kind} tensor: save weights as dense tensors of real numbers"
            )


def _unusual_kind(x: torch.Tensor) -> str:
    """What makes it one that no parameter can be set to, or ""."""
    kinds = {
        "meta": x.is_meta,  # without numbers
        "complex": x.is_complex(),
        "quantized": x.is_quantized,
        "sparse": x.layout != torch.strided,
    }
    return next((kind for kind, holds in kinds.items() if holds), "")


def _leave_out_wrong_notes(checkpoint: dict[str, Any], source: str) -> None:
    """Files of other programs may use our names for something else."""
    for key, types in _NOTE_TYPES.items():
        note = checkpoint.get(key)
        if note is not None and not isinstance(note, types):
            logger.warning(f"{source} has a {type(note).__name__} as its {key}, which is left out")
            del checkpoint[key]
