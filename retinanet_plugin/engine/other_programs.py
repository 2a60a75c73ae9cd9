"""How busy other programs keep a machine, while something is measured on it."""

import os
import time


class OtherPrograms:
    """The cores that other programs have kept busy since this was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds = _seconds_of_others()

    def busy_cores(self) -> float:
        seconds = _seconds_of_others() - self._seconds
        return max(0.0, seconds) / (time.perf_counter() - self._start)


def _seconds_of_others() -> float:
    """Processor time of all programs since the machine started, without this and its workers."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _io, irq, softirq, steal = map(int, file.readline().split()[1:9])
    seconds = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return seconds - own.user - own.system - own.children_user - own.children_system
