"""The checkpoints that are in OUTPUT_DIR when a training starts."""

import logging
import os
import re
import shutil

from ...errors import UserError
from ...whole_files import remove_leftovers
from .weight_files import UnreadableError, read_checkpoint

logger = logging.getLogger("detectron2.checkpointer")

_PERIODIC = re.compile(r"model_(\d+)\.pth")
_OF_A_TRAINING = re.compile(r"model_(\d+|final|best)\.pth")


def find_checkpoint(output_dir: str, quiet: bool = False) -> str | None:
    """The checkpoint that ``--resume`` goes on from.

    It is the one that ``last_checkpoint`` names, or, if that is not whole, the whole one of the
    latest iteration, with a warning that names both.

    Args:
        output_dir: ``OUTPUT_DIR``, which need not exist.
        quiet: without the warning.

    Returns:
        str or None: its path; None: no training left a checkpoint.

    Raises:
        UserError: there are checkpoints, of which none is whole.
    """
    named, problem = _named_checkpoint(output_dir)
    if named and not problem:
        return named
    found, problems = _newest_whole(output_dir, skip=named)
    if named or problem:
        problems.insert(0, problem)
    if found is None:
        if not problems:
            return None
        raise UserError(
            f"no checkpoint in {output_dir} is whole ({'; '.join(problems)}): train without "
            "--resume, or put a whole one there"
        )
    if not quiet:
        path, iteration = found
        problems = problems or [f"{os.path.join(output_dir, 'last_checkpoint')} is missing"]
        logger.warning(
            f"{'; '.join(problems)}: --resume goes on from {path}, of iteration {iteration}, the "
            "newest whole checkpoint"
        )
    return found[0]


def periodic_checkpoints(output_dir: str) -> list[str]:
    """Paths of the checkpoints that a training wrote every so often, the oldest first."""
    names = [name for name in os.listdir(output_dir) if _PERIODIC.fullmatch(name)]
    names.sort(key=lambda name: int(name[len("model_") : -len(".pth")]))
    return [os.path.join(output_dir, name) for name in names]


def prepare_output_dir(output_dir: str, resumed: bool) -> None:
    """What the first process does with the files of earlier trainings when one starts.

    To be called when the initial weights are loaded, because they may be among those files.

    Args:
        output_dir: ``OUTPUT_DIR``, which exists.
        resumed: whether the training goes on from one of its checkpoints.
    """
    remove_leftovers(output_dir)
    if not resumed:
        set_aside_earlier_training(output_dir)


def set_aside_earlier_training(output_dir: str) -> None:
    """Move the checkpoints of an earlier training, and its metrics, to earlier-1, -2, ...

    A new training gives its files the same names.
    """
    names = sorted(name for name in os.listdir(output_dir) if _OF_A_TRAINING.fullmatch(name))
    if not names:
        return
    number = 1
    while os.path.lexists(folder := os.path.join(output_dir, f"earlier-{number}")):
        number += 1
    os.mkdir(folder)
    for name in [*names, "last_checkpoint"]:
        if os.path.lexists(os.path.join(output_dir, name)):
            os.replace(os.path.join(output_dir, name), os.path.join(folder, name))
    metrics = os.path.join(output_dir, "metrics.json")
    if os.path.isfile(metrics):
        # The new training's writer has opened it already, to append to it.
        shutil.copy2(metrics, folder)
        os.truncate(metrics, 0)
    logger.warning(
        f"{output_dir} holds an earlier training, which --resume would have gone on with: its "
        f"{len(names)} checkpoints and its metrics are now in {folder}"
    )


def _named_checkpoint(output_dir: str) -> tuple[str, str]:
    """The file that ``last_checkpoint`` names, "" for none, and what is wrong, "" for nothing."""
    tag = os.path.join(output_dir, "last_checkpoint")
    try:
        with open(tag, encoding="utf-8") as file:
            name = file.read().strip()
    except FileNotFoundError:
        return "", ""
    except (OSError, UnicodeDecodeError):
        return "", f"{tag} cannot be read"
    if not name or "\0" in name or "\n" in name:
        return "", f"{tag} names no file"
    path = os.path.join(output_dir, name)
    return path, _why_not_whole(path)


def _newest_whole(output_dir: str, skip: str) -> tuple[tuple[str, int] | None, list[str]]:
    """The whole checkpoint of the latest iteration with it, and what is wrong with newer ones."""
    problems, iterations = [], {}
    for name in sorted(os.listdir(output_dir)) if os.path.isdir(output_dir) else []:
        path = os.path.join(output_dir, name)
        if not name.endswith(".pth") or os.path.realpath(path) == os.path.realpath(skip or "."):
            continue
        try:
            iteration = read_checkpoint(path, only_header=True).get("iteration")
        except UnreadableError as error:
            if _OF_A_TRAINING.fullmatch(name):
                problems.append(_problem(path, error))
            continue
        if isinstance(iteration, int):  # others are weights that somebody put there
            iterations[path] = iteration
    for path in sorted(iterations, key=lambda path: iterations[path], reverse=True):
        problem = _why_not_whole(path)
        if not problem:
            return (path, iterations[path]), problems
        problems.append(problem)
    return None, problems


def _why_not_whole(path: str) -> str:
    """ "" if the checkpoint can be read to its end."""
    try:
        read_checkpoint(path)
    except UnreadableError as error:
        return _problem(path, error)
    return ""


def _problem(path: str, error: UnreadableError) -> str:
    return f"{path} {str(error).partition(':')[0]}"
