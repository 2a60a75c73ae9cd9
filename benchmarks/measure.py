"""Seconds and bytes: functions in turn, parts of a step, peak memory, the machine's own rate."""

import ctypes
import functools
import multiprocessing
import time

import torch


def timed(function, device):
    """Seconds of a call, with what it has started on a GPU."""
    _synchronize(device)
    start = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - start


def in_turn(functions, repeats, device):
    """Seconds of each of the named functions, called in turn, so that a machine whose speed drifts
    is the same for all; the first round is a warm-up."""
    seconds = {name: [] for name in functions}
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            duration = timed(function, device)
            if round_ > 0:
                seconds[name].append(duration)
    return seconds


def parts_of_step(subject, repeats):
    """Seconds of backbone, head, matching, losses and backward in training steps of ``subject``."""
    device, model = subject.workload.device, subject.model
    laps = {}

    def measure(owner, method, part):
        function = getattr(owner, method)

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            result = []
            duration = timed(lambda: result.append(function(*args, **kwargs)), device)
            laps.setdefault(part, []).append(duration)
            return result[0]

        setattr(owner, method, wrapped)

    places = [(model.backbone, "forward", "backbone"), (model.head, "forward", "head")]
    if hasattr(model, "label_anchors"):
        places += [(model, "label_anchors", "matching"), (model, "losses", "losses")]
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


def matmul_rate(device, dtype, size=2048):
    """FLOP/s of a matrix product, the best of several."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    timed(lambda: a[:64] @ a, device)
    return 2 * size**3 / min(timed(lambda: a @ a, device) for _ in range(5))


def peak_memory(make_function, *args, device):
    """Bytes that ``make_function(*args)()`` adds to what is there before it.

    It runs in a process of its own; ``make_function`` must be importable.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (make_function, args, device))


def _peak_memory(make_function, args, device):
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


def _resident_peak():
    with open("/proc/self/status") as f:
        (line,) = [line for line in f if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _synchronize(device):
    if device != "cpu":
        torch.cuda.synchronize()
