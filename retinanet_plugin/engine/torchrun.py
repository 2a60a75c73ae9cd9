"""The processes that torchrun starts: how they meet, and who speaks for all.

torchrun tells each process its place in environment variables, and ends and starts all of them anew
when one has failed (``--max-restarts``). Its agent keeps a store of keys and values for them.
"""

import os
import pickle
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore

from .. import compat
from ..errors import UserError

_PORT, _FAILURES = "port of the first process", "failures"
_POLL_S, _CONNECTING_S = 0.05, 5.0
_SERVED_S, _SERVED_BY_FIRST_S = 30.0, 300.0  # until a store answers


def is_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return distributed.is_torchelastic_launched()


def num_processes() -> int:
    """How many processes torchrun has started, on all machines; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if is_torchrun() else 1


def rank() -> int:
    """The number of this process among those that torchrun has started; 0 without it."""
    return int(os.environ["RANK"]) if is_torchrun() else 0


def may_start_anew() -> bool:
    """Whether torchrun starts processes once more if it was not torchrun itself that was ended."""
    if not is_torchrun():
        return False
    done, most = (os.environ[f"TORCHELASTIC_{x}"] for x in ("RESTART_COUNT", "MAX_RESTARTS"))
    return int(done) < int(most)


def is_first_process() -> bool:
    """Whether this process speaks for all, also before and after they are a group."""
    return rank() == 0 and comm.is_main_process()


def use_own_gpu() -> None:
    """Let ``cuda`` be the GPU of this process, if torchrun has started it where there are some.

    Raises:
        UserError: there are not as many GPUs as processes here.
    """
    if not is_torchrun() or not torch.cuda.is_available():
        return
    num_here, found = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if num_here > found:
        raise UserError(
            f"torchrun has started {num_here} processes here, and PyTorch finds {found} CUDA "
            "devices, one for each: lower --nproc-per-node, or hide them with "
            "CUDA_VISIBLE_DEVICES= and let the device be cpu"
        )
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


@contextmanager
def process_group() -> Iterator[None]:
    """The processes of torchrun as a group of PyTorch's, and Detectron2's groups of a machine.

    They exchange by NCCL where there are GPUs, each of which has one process, else by Gloo. Without
    torchrun there is no group.

    Raises:
        UserError: see :func:`use_own_gpu`; or machines have unequal numbers of processes.
    """
    if not is_torchrun():
        yield
        return
    num, num_here = num_processes(), int(os.environ["LOCAL_WORLD_SIZE"])
    if num % num_here:
        raise UserError(
            f"torchrun has started {num} processes, {num_here} of them on this machine: give "
            "--nproc-per-node the same number on all machines"
        )
    use_own_gpu()
    distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=_store_of_all(),
        rank=rank(),
        world_size=num,
        timeout=DEFAULT_TIMEOUT,
    )
    compat.create_local_process_group(num_here)
    comm.synchronize()
    yield
    # After a failure the process ends anyway, and others may be waited for in vain.
    distributed.destroy_process_group()


def send(name: str, message: Any) -> None:
    """Let other processes of torchrun :func:`receive` something that can be pickled."""
    if is_torchrun():
        key = f"{name} of {rank()}"
        _store_of_all().set(key, pickle.dumps(message))  # type: ignore[arg-type]


def receive(name: str, sender: int = 0) -> Any:
    """Wait for what a process sends, however long that takes.

    Raises:
        torch.distributed.DistError: the first process has ended.
    """
    message = _wait_for(_store_of_all(), f"{name} of {sender}")
    _store_of_all().add(f"{name}: received", 1)
    return pickle.loads(message)


def wait_until_received(name: str, seconds: float) -> bool:
    """Wait until all other processes have received what this one has sent, but not for long.

    Returns:
        whether they have.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if _store_of_all().add(f"{name}: received", 0) == num_processes() - 1:
            return True
        time.sleep(_POLL_S)
    return False


def is_first_to_fail() -> bool:
    """Whether no process of torchrun has called this before since all were started."""
    try:
        return _store_of_restart().add(_FAILURES, 1) == 1
    except (distributed.DistError, UserError):  # the agent has ended
        return True


def others_failed() -> bool:
    """Whether a process of torchrun has called :func:`is_first_to_fail`."""
    try:
        return is_torchrun() and _store_of_restart().add(_FAILURES, 0) > 0
    except (distributed.DistError, UserError):
        return False


@cache
def _agent_store() -> Store:
    """
    Raises:
        UserError: the agent has ended, or cannot be reached.
    """
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank() == 0 and not is_served:
        return TCPStore(host, port, is_master=True, wait_for_workers=False)
    # The first process, where it is the one to serve, may take long to start.
    end = time.monotonic() + (_SERVED_S if is_served else _SERVED_BY_FIRST_S)
    while (store := _connected(host, port)) is None:
        if time.monotonic() > end:
            raise UserError(
                f"the store of torchrun's agents at {host}:{port} does not answer: look whether "
                "the agent there has ended, and start the command anew"
            )
        time.sleep(_POLL_S)
    store.set_timeout(DEFAULT_TIMEOUT)
    return store


@cache
def _store_of_all() -> TCPStore:
    """A new store in the first process, known to the others by the agent's.

    PyTorch would take the agent's itself, in which processes find the addresses of those that were
    ended by a restart.
    """
    if rank() == 0:
        store = TCPStore(os.environ["MASTER_ADDR"], 0, is_master=True, wait_for_workers=False)
        _agent_store().set(_PORT, str(store.port))
    else:
        store = _connected_store()
    store.set_timeout(DEFAULT_TIMEOUT)
    return store


def _connected_store() -> TCPStore:
    host = os.environ["MASTER_ADDR"]
    # One of before the restart, or that has just ended, is not there.
    while (store := _connected(host, int(_wait_for(_agent_store(), _PORT)))) is None:
        time.sleep(_POLL_S)
    return store


def _connected(host: str, port: int) -> TCPStore | None:
    """For a short while alone, since PyTorch hears no signal meanwhile."""
    try:
        socket.create_connection((host, port), _CONNECTING_S).close()
        return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=_CONNECTING_S))
    except (OSError, distributed.DistError):
        return None


def _wait_for(store: Store, key: str) -> bytes:
    while not store.check([key]):  # and not get alone, in which no signal would be heard
        time.sleep(_POLL_S)
    return store.get(key)


def _store_of_restart() -> Store:
    """The agent's, for what concerns the processes that run now alone.

    Each agent counts restarts for itself: it is the port of this time's store that all share.
    """
    return PrefixStore(f"port {_store_of_all().port}", _agent_store())
