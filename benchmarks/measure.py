"""Seconds and bytes: functions in turn, parts of a training step, peak memory."""

import ctypes
import functools
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import torch
from models import OURS, TORCHVISION, Subject


def timed(function: Callable[[], Any], device: str) -> float:
    """Seconds of a call, with what it has started on a GPU."""
    _synchronize(device)
    start = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - start


def in_turn(
    functions: dict[str, Callable[[], Any]], repeats: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each of the named functions, called in turn, so that a machine whose speed drifts
    is the same for all; the first round is a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            duration = timed(function, device)
            if round_ > 0:
                seconds[name].append(duration)
    return seconds


def parts_of_step(subject: Subject, repeats: int) -> dict[str, list[float]]:
    """Seconds of backbone, head, matching, losses and backward in training steps of ``subject``."""
    device, model = subject.workload.device, subject.model
    laps: dict[str, list[float]] = {}

    def measure(owner: Any, method: str, part: str) -> None:
        function = getattr(owner, method)

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result: list[Any] = []
            duration = timed(lambda: result.append(function(*args, **kwargs)), device)
            laps.setdefault(part, []).append(duration)
            return result[0]

        setattr(owner, method, wrapped)

    places = [(model.backbone, "forward", "backbone"), (model.head, "forward", "head")]
    if subject.kind != TORCHVISION:
        ours = subject.kind == OURS
        match = (model.matcher, "forward") if ours else (model, "label_anchors")
        places += [(*match, "matching"), (model, "losses", "losses")]
    for place in places:
        measure(*place)
    try:
        for _ in range(repeats + 1):
            loss = subject.loss()
            laps.setdefault("backward", []).append(timed(loss.backward, device))
    finally:
        for owner, method, _ in places:
            delattr(owner, method)
    return {part: durations[1:] for part, durations in laps.items()}


def peak_memory(make_function: Callable[..., Any], *args: Any, device: str) -> int:
    """Bytes that ``make_function(*args)()`` adds to what is there before it.

    It runs in a process of its own; ``make_function`` must be importable. On a GPU, whose allocator
    counts bytes, it runs here.
    """
    if device != "cpu":
        return _peak_memory(make_function, args, device)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (make_function, args, device))


def _peak_memory(make_function: Callable[..., Any], args: tuple, device: str) -> int:
    function = make_function(*args)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    # What glibc keeps of freed memory would be used again, and not counted.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # Linux: the peak starts anew from what is in use
    before = _resident_peak()
    function()
    return _resident_peak() - before


def _resident_peak() -> int:
    with open("/proc/self/status") as f:
        (line,) = [line for line in f if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
