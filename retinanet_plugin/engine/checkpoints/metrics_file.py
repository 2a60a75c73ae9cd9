"""The lines of metrics.json that stay when a training goes on: what is noted again goes out.

What is of no iteration, or no JSON, is somebody else's, and stays.
"""

import json
import os
from collections.abc import Callable, Collection
from typing import Any

_Line = dict[str, Any]


def cut_metrics(path: str, start_iter: int) -> None:
    """Take out what was noted of iterations that are done again, from ``start_iter`` on.

    Lines are in no order: Detectron2 writes that of an evaluation after later ones.
    """
    _rewrite(path, lambda line: line if line["iteration"] < start_iter else {})


def take_out_metrics(path: str, iteration: int, names: Collection[str]) -> None:
    """Take out metrics of these names, which are noted once more, of an iteration."""
    _rewrite(
        path,
        lambda line: {
            name: value
            for name, value in line.items()
            if line["iteration"] != iteration or name not in names
        },
    )


def _rewrite(path: str, change: Callable[[_Line], _Line]) -> None:
    if not os.path.isfile(path):
        return
    with open(path, "r+b") as file:  # which the writer has opened to append to it
        before = file.readlines()
        after = [_changed(line, change) for line in before if line.endswith(b"\n")]  # not cut off
        if after != before:
            file.seek(0)
            file.writelines(after)
            file.truncate()


def _changed(line: bytes, change: Callable[[_Line], _Line]) -> bytes:
    try:
        content = json.loads(line)
        changed = change(content)
    except (ValueError, TypeError, KeyError, AttributeError):
        return line
    if changed == content:
        return line
    if not changed.keys() - {"iteration"}:
        return b""
    return json.dumps(changed, sort_keys=True).encode() + b"\n"
