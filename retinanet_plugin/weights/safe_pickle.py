"""Pickles of arrays and plain containers, read so that nothing in them can run."""

import pickle
from collections import OrderedDict
from typing import Any

import numpy as np

NOT_CODE = (
    "if you trust the file, load it with the program that wrote it and save only its weights: "
    "torch.save({'model': model.state_dict()}, 'weights.pth')"
)


class UnreadableError(Exception):
    """A file holds no weights that can be read; the message is a clause: "is empty"."""


class ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and plain containers; nothing else is found, so nothing else can run."""

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise UnreadableError(
                f"holds {module}.{name} beside arrays, which may run code, and is not read: "
                f"{NOT_CODE}"
            )
        return found


class SkippedObject:
    """In place of a class or function that is not known: whatever is made of it is an empty dict.

    A dict, because it is then filled by what the pickle holds of a mapping, or given attributes.
    """

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """``_codecs.encode`` for what pickles of bytes write alone."""
    return text.encode("latin1") if encoding == "latin1" else text.encode("utf-8")


def _allowed() -> dict[tuple[str, str], Any]:
    """What pickles of arrays and containers name, in Python 2 and 3 and numpy 1 and 2."""
    # The functions by which arrays and numbers of numpy say they are to be made.
    reconstruct, scalar = np.zeros(1).__reduce__()[0], np.float32(0).__reduce__()[0]
    from_buffer = np.zeros(1).__reduce_ex__(5)[0]
    allowed: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
    }
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = reconstruct
        allowed[f"{core}.multiarray", "scalar"] = scalar
        allowed[f"{core}.numeric", "_frombuffer"] = from_buffer
    for builtins in ("builtins", "__builtin__"):
        for kind in (dict, list, tuple, set, frozenset, int, float, complex, bool, str, bytes):
            allowed[builtins, kind.__name__] = kind
        allowed[builtins, "bytearray"] = bytearray
    return allowed


_ALLOWED = _allowed()


def numpy_globals() -> list[Any]:
    """What PyTorch is to read beside its own: older checkpoints hold numbers of numpy."""
    names = [
        (found, f"{module}.{name}")
        for (module, name), found in _ALLOWED.items()
        if module.startswith("numpy")
    ]
    dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    return [*names, *dtypes]
