"""Python's search for garbage, which finds none among annotations and goes through all of them."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_garbage_search() -> Iterator[None]:
    """For code that makes millions of objects without cycles; also as a decorator."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
