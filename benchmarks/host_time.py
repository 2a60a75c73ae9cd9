"""What the host does for a GPU: a forward and backward on the meta device, which computes nothing.

On CUDA the host only starts kernels. A model on the meta device goes the same way through Python
and PyTorch, and no kernel runs, so what is left is the host's time, on any machine.
"""

import statistics
import time
from typing import Any

import torch
from models import OURS, STOCK, Subject, Workload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


def host_time(workload: Workload, repeats: int = 15) -> dict[str, dict[str, float]]:
    """Of both subjects, in turn: ``functions`` of torch that are called and ``operators`` that are
    dispatched in a forward in training, and seconds of the processor, medians, of ``forward`` and
    ``backward``.

    The forward is the model's own, up to the head: Detectron2's matching reads values, which the
    meta device does not have.
    """
    subjects = {name: Subject(name, workload.on("meta")) for name in (OURS, STOCK)}
    results = {name: _count(subject) for name, subject in subjects.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for round_ in range(repeats + 1):
        for name, subject in subjects.items():
            start = time.process_time()
            outputs = subject.head_outputs()
            middle = time.process_time()
            torch.autograd.backward(outputs, [torch.empty_like(x) for x in outputs])
            if round_ > 0:  # the first one warms up
                seconds[name].append((middle - start, time.process_time() - middle))
    for name, laps in seconds.items():
        forward, backward = zip(*laps)
        results[name]["forward"] = statistics.median(forward)
        results[name]["backward"] = statistics.median(backward)
    return results


def _count(subject: Subject) -> dict[str, float]:
    functions, operators = _CountFunctions(), _CountOperators()
    with functions:
        subject.head_outputs()
    with operators:
        subject.head_outputs()
    return {"functions": functions.calls, "operators": operators.calls}


class _CountFunctions(TorchFunctionMode):
    calls = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls += 1
        return function(*args, **(kwargs or {}))


class _CountOperators(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls += 1
        return function(*args, **(kwargs or {}))
