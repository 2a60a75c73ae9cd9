"""The one exception for what a user can mend, and words that its sentences are made of."""

from collections.abc import Sequence
from typing import Any

from fvcore.common.registry import Registry
from torch import Tensor


class UserError(ValueError):
    """One sentence: what is wrong, where (file, key, id), and the remedy.

    ``train_net.py`` and ``python -m retinanet_plugin`` print it without a traceback and exit
    with status 1; code that imports this package catches it as a :class:`ValueError`.
    """

    def __init__(self, message: str) -> None:
        # A DataLoader raises what a worker raised anew, with the worker's traceback as the message.
        if message.startswith("Caught UserError in "):
            message = message.rpartition("UserError: ")[2].strip()
        super().__init__(message)


def described(returned: object) -> str:
    """What a part returned, for the sentence that says that it is to return something else."""
    if isinstance(returned, tuple):
        return f"({', '.join(map(described, returned))})"
    if isinstance(returned, Tensor):
        dtype = str(returned.dtype).removeprefix("torch.")
        return f"a tensor of shape {tuple(returned.shape)}, {dtype}"
    return type(returned).__name__


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first ``most`` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def registered(registry: Registry, name: str, key: str) -> Any:
    """The object that ``registry`` holds as ``name``, the value of the config key ``key``.

    Raises:
        UserError: nothing is registered by that name.
    """
    if name in registry:
        return registry.get(name)
    names = ", ".join(sorted(known for known, _ in registry))
    raise UserError(
        f"{key} is {name!r}, which nothing is registered as: choose from {names}, or import the "
        "module that registers it"
    )
