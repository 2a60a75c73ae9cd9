"""How the processes of a training start: all by torchrun, or by Detectron2's ``launch`` of one."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import detectron2.engine

from .failures.console import in_its_own_words
from .restarts import introduce, mistake_was_told, note_told_mistake
from .signals import wait_to_be_ended
from .torchrun import (
    is_first_process,
    is_torchrun,
    process_group,
    receive,
    send,
    wait_until_received,
)

Result = TypeVar("Result")

_PREPARED = "what was prepared"
# Processes that start later than the first one has failed find none to listen to.
_SLOWEST_S = 10.0
_BY_SIGNAL = 128  # from here on, the status of a process that a signal has ended


def launch(
    main: Callable[[argparse.Namespace], Any], prepare: Callable[[], argparse.Namespace]
) -> None:
    """Call ``main`` in every process of a training.

    Args:
        main: is given what ``prepare`` returns.
        prepare: reads the command line and checks all that can be checked, in one process. Without
            torchrun its options say how many processes are to start.

    Raises:
        UserError: of ``prepare`` or of ``main``, in any process.
    """
    if is_torchrun():
        args = _by_first_process(prepare)
        with process_group():
            main(args)
        return
    args = prepare()
    detectron2.engine.launch(
        in_its_own_words,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(main, args),
    )


def _by_first_process(function: Callable[[], Result]) -> Result:
    """What ``function`` returns in the first process, in all of them.

    They are no group yet, so that it runs as in a process alone.

    Raises:
        BaseException: what it raises, in the first process; the others end with its status, and
            leave it to the first one to say why. Once it is said, so do all that torchrun starts
            anew: it does not know that they fail again.
    """
    if not is_first_process():
        introduce()
        result, status = receive(_PREPARED)
        if status is None:
            return result
        if status:
            wait_to_be_ended()  # torchrun names the process that ends first
        sys.exit(status)
    try:
        if mistake_was_told():
            sys.exit(1)
        result = function()
    except (Exception, SystemExit) as error:
        code = getattr(error, "code", 1)
        status = code if isinstance(code, int) else 1
        send(_PREPARED, (None, status))
        if wait_until_received(_PREPARED, _SLOWEST_S) and 0 < status < _BY_SIGNAL:
            note_told_mistake()
        raise
    send(_PREPARED, (result, None))
    return result
