"""What outlives the processes of torchrun: whose training is in OUTPUT_DIR, and a mistake told.

torchrun has an agent on each machine, which starts its processes anew when some anywhere have
failed. Processes go on with the training of those before them if one of its agents is theirs, and
so whichever others have been lost. Another start of the same command has agents of its own.
"""

import contextlib
import logging
import os
import socket
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..whole_files import write_whole_file
from .checkpoints.earlier_checkpoints import find_checkpoint
from .checks.startup_log import log_on_console
from .output_lock import refuse_if_in_use
from .torchrun import is_torchrun, num_processes, receive, send

logger = logging.getLogger("detectron2.trainer")

_AGENT, _BEGUN = "agent", "training-has-begun"
_RECORDED = ".torchrun"  # in OUTPUT_DIR: the agents of the training there, one a line
_TOLD = "mistake-was-told"
# A disk of the network lets go of a file that a lost machine has locked: NFS, after 90 seconds.
_UNTIL_FREE_S = 150.0


def introduce() -> None:
    """Tell the first process which agent has started this one, before there is a group."""
    send(_AGENT, _agent())
    send(_BEGUN, _may_have_begun())


def note_training(output_dir: str) -> None:
    """Let :func:`goes_on_after_restart` know that what is in ``OUTPUT_DIR`` is of this training.

    To be called in all processes, which are a group by now.
    """
    _touch(_BEGUN)
    agents = set(comm.all_gather(_agent()))
    if comm.is_main_process():
        _record(output_dir, agents)


def goes_on_after_restart(cfg: CfgNode) -> bool:
    """Whether torchrun has started this training anew, with a checkpoint to go on from.

    One that an earlier training left in ``OUTPUT_DIR`` does not count. To be called in the first
    process, when the others call :func:`introduce`.

    Raises:
        UserError: a process of before the restart still writes there.
    """
    try:
        before = set(Path(cfg.OUTPUT_DIR, _RECORDED).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return False
    if not is_torchrun():
        return False
    agents = {_agent(), *(receive(_AGENT, sender) for sender in range(1, num_processes()))}
    if not before & agents:
        return False
    # Of an agent that was lost, processes can live a while longer, and save a checkpoint.
    refuse_if_in_use(cfg.OUTPUT_DIR, _UNTIL_FREE_S)
    _record(cfg.OUTPUT_DIR, agents)  # of which those that stay may be new
    found = find_checkpoint(cfg.OUTPUT_DIR, quiet=True)
    where = f"from {found.path}" if found else "at its beginning, since it has no checkpoint yet"
    with log_on_console():
        logger.warning(f"torchrun has started the processes anew: the training goes on {where}")
    return found is not None


def note_told_mistake() -> None:
    """Let :func:`mistake_was_told` know that nothing is to be tried again.

    What fails after a training has begun may be a machine's, such as a disk that is away: that is
    tried again. PyTorch's count of restarts does not tell: it is 0 after an agent has joined. To be
    called in the first process, when all others have called :func:`introduce`.
    """
    others = (receive(_BEGUN, sender) for sender in range(1, num_processes()))
    if not (_may_have_begun() or any(others)):
        _touch(_TOLD)


def mistake_was_told() -> bool:
    """Whether a first process of this agent ended because of a mistake in command or config."""
    return bool((folder := _agent_folder()) and Path(folder, _TOLD).exists())


def _record(output_dir: str, agents: set[str]) -> None:
    path, content = os.path.join(output_dir, _RECORDED), "\n".join(sorted(agents - {""})).encode()
    if content or os.path.exists(path):
        write_whole_file(path, lambda file: file.write(content))


def _may_have_begun() -> bool:
    """Whether a training of this agent has; True where that cannot be told."""
    return not (folder := _agent_folder()) or Path(folder, _BEGUN).exists()


def _touch(name: str) -> None:
    if folder := _agent_folder():
        with contextlib.suppress(OSError):  # a mistake is told again
            Path(folder, name).touch()


def _agent() -> str:
    """What tells the agent of this process from all others, of any time; "": it cannot be told."""
    folder = _agent_folder()
    return f"{socket.gethostname()}:{folder}" if folder else ""


def _agent_folder() -> str:
    """The folder of the processes' logs, which each agent makes with a random name of its own.

    "": the agent was told to make none.
    """
    # <folder>/attempt_0/0/error.json
    file = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
    return str(Path(file).parents[2]) if file else ""
