"""The checkpoints that are in OUTPUT_DIR when a training starts."""

import logging
import os
import shutil
from dataclasses import dataclass, field
from typing import Any

from ...errors import UserError
from ...weights.finite_numbers import not_finite
from ...weights.safe_pickle import UnreadableError
from ...weights.torch_files import read_checkpoint
from ...whole_files import remove_leftovers
from .file_names import AVERAGED_WEIGHTS, LAST_CHECKPOINT, METRICS, PERIODIC, is_of_a_training
from .metrics_file import cut_metrics

logger = logging.getLogger("detectron2.checkpointer")

_LONGEST_PATH = 1024  # characters


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint that was read to its end, and holds finite numbers."""

    path: str
    content: dict[str, Any] = field(repr=False)


def find_checkpoint(output_dir: str, quiet: bool = False) -> FoundCheckpoint | None:
    """The checkpoint that ``--resume`` goes on from.

    It is the one that ``last_checkpoint`` names, or, if that is not usable, the usable one of the
    latest iteration, with a warning that names both. Usable is what can be read to its end and
    holds finite numbers.

    Args:
        output_dir: ``OUTPUT_DIR``, which need not exist.
        quiet: without the warning.

    Returns:
        FoundCheckpoint or None: with what was read; None: no training left a checkpoint.

    Raises:
        UserError: there are checkpoints, of which none is usable.
    """
    tag, named, problems = os.path.join(output_dir, LAST_CHECKPOINT), "", []
    try:
        named = _named_checkpoint(tag)
        if named:
            found = _read_usable(named)
            if not quiet and not _is_in(output_dir, named):
                logger.warning(
                    f"{tag} names a file outside of OUTPUT_DIR, {named}: --resume goes on from it"
                )
            return found
    except UnreadableError as error:
        problems.append(_problem(named or tag, error))
    newest, more = _newest_usable(output_dir, skip=named)
    problems += more
    if newest is None:
        if not problems:
            return None
        raise UserError(
            f"no checkpoint in {output_dir} can be gone on from ({'; '.join(problems)}): train "
            "without --resume, or put a whole one there"
        )
    if not quiet:
        logger.warning(
            f"{'; '.join(problems or [f'{tag} is missing'])}: --resume goes on from {newest.path}, "
            f"of iteration {newest.content['iteration']}, the newest usable checkpoint"
        )
    return newest


def periodic_checkpoints(output_dir: str) -> list[str]:
    """Paths of the checkpoints that a training wrote every so often, the oldest first."""
    names = [name for name in os.listdir(output_dir) if PERIODIC.fullmatch(name)]
    names.sort(key=lambda name: int(name[len("model_") : -len(".pth")]))
    return [os.path.join(output_dir, name) for name in names]


def prepare_output_dir(output_dir: str, start_iter: int) -> None:
    """What the first process does with the files of earlier trainings when one starts.

    To be called when the initial weights are loaded, because they may be among those files.

    Args:
        output_dir: ``OUTPUT_DIR``, which exists.
        start_iter: above 0, the training goes on from one of its checkpoints.
    """
    remove_leftovers(output_dir)
    if start_iter == 0:
        set_aside_earlier_training(output_dir)
    else:
        cut_metrics(os.path.join(output_dir, METRICS), start_iter)


def refuse_weights_of_earlier_training(weights: str, output_dir: str) -> None:
    """Refuse a ``MODEL.WEIGHTS`` that :func:`set_aside_earlier_training` moves away.

    If the new training is stopped before its first checkpoint, ``--resume`` begins with it again.

    Raises:
        UserError: it is a checkpoint of a training in ``output_dir``.
    """
    for path in (weights, os.path.realpath(weights)):
        folder, name = os.path.split(os.path.abspath(path))
        if is_of_a_training(name) and folder in map(
            os.path.abspath, (output_dir, os.path.realpath(output_dir))
        ):
            raise UserError(
                f"MODEL.WEIGHTS {weights} is of an earlier training in OUTPUT_DIR {output_dir}, "
                "where the new one gives its files the same names: set another OUTPUT_DIR, or go "
                "on with the earlier training by --resume"
            )


def set_aside_earlier_training(output_dir: str) -> None:
    """Move the checkpoints of an earlier training, its metrics and curves, to earlier-1, -2, ...

    A new training gives its files the same names.
    """
    names = sorted(name for name in os.listdir(output_dir) if is_of_a_training(name))
    metrics = os.path.join(output_dir, METRICS)
    has_metrics = os.path.isfile(metrics) and os.path.getsize(metrics) > 0
    if not names and not has_metrics:
        return
    folder = _make_folder_of_earlier(output_dir)
    # TensorBoard's files have the process in their names: those of this one are in use.
    curves = [
        name
        for name in os.listdir(output_dir)
        if name.startswith("events.out.tfevents.") and f".{os.getpid()}." not in name
    ]
    for name in [*names, *curves, LAST_CHECKPOINT]:
        if os.path.lexists(os.path.join(output_dir, name)):
            os.replace(os.path.join(output_dir, name), os.path.join(folder, name))
    if has_metrics:
        # The new training's writer has opened it already, to append to it.
        shutil.copy2(metrics, folder)
        os.truncate(metrics, 0)
    logger.warning(
        f"{output_dir} holds an earlier training"
        f"{', which --resume would have gone on with' if names else ''}: its {len(names)} "
        f"checkpoints and its metrics are now in {folder}"
    )


def set_aside_earlier_average(output_dir: str) -> None:
    """Move the averaged weights that stand beside final weights of which they are no average."""
    path = os.path.join(output_dir, AVERAGED_WEIGHTS)
    if os.path.lexists(path):
        folder = _make_folder_of_earlier(output_dir)
        os.replace(path, os.path.join(folder, AVERAGED_WEIGHTS))
        logger.warning(
            f"{path} is of before this training went on, which averaged nothing more: now in "
            f"{folder}"
        )


def _make_folder_of_earlier(output_dir: str) -> str:
    number = 1
    while os.path.lexists(folder := os.path.join(output_dir, f"earlier-{number}")):
        number += 1
    os.mkdir(folder)
    return folder


def _named_checkpoint(tag: str) -> str:
    """The file that ``last_checkpoint`` names; "": ``tag`` does not exist.

    Raises:
        UnreadableError: it names none.
    """
    try:
        with open(tag, encoding="utf-8") as file:
            name = file.read().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError("cannot be read") from error
    if not name or "\0" in name or "\n" in name or len(name) > _LONGEST_PATH:
        raise UnreadableError("names no file")
    return os.path.join(os.path.dirname(tag), name)


def _newest_usable(output_dir: str, skip: str) -> tuple[FoundCheckpoint | None, list[str]]:
    """The usable checkpoint of the latest iteration, and what is wrong with newer ones."""
    problems, iterations = [], {}
    for name in sorted(os.listdir(output_dir)) if os.path.isdir(output_dir) else []:
        path = os.path.join(output_dir, name)
        if not name.endswith(".pth") or os.path.realpath(path) == os.path.realpath(skip or "."):
            continue
        try:
            iteration = read_checkpoint(path, only_header=True).get("iteration")
        except UnreadableError as error:
            if is_of_a_training(name):
                problems.append(_problem(path, error))
            continue
        if isinstance(iteration, int):  # others are weights that somebody put there
            iterations[path] = iteration
    for path in sorted(iterations, key=lambda path: iterations[path], reverse=True):
        try:
            return _read_usable(path), problems
        except UnreadableError as error:
            problems.append(_problem(path, error))
    return None, problems


def _read_usable(path: str) -> FoundCheckpoint:
    """
    Raises:
        UnreadableError: it cannot be read to its end, or holds a number that is not finite.
    """
    content = read_checkpoint(path)
    failed = not_finite(content)
    if failed:
        raise UnreadableError(f"has NaN or infinite numbers in {failed}")
    return FoundCheckpoint(path, content)


def _is_in(folder: str, path: str) -> bool:
    return os.path.abspath(os.path.dirname(path)) == os.path.abspath(folder)


def _problem(path: str, error: UnreadableError) -> str:
    return f"{path} {str(error).partition(':')[0]}"
