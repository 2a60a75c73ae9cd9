"""States in a checkpoint that are missing or of another type, as one sentence."""

import contextlib
from collections.abc import Iterator

from ...errors import UserError


@contextlib.contextmanager
def usable_state(path: str) -> Iterator[None]:
    """While the state of a training is taken from the file ``path``.

    Raises:
        UserError: for whatever is raised because a part is missing or of another type.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())
        reason = (
            words
            if type(error) in (LookupError, ValueError)
            else f"{type(error).__name__}: {words}"
        )
        raise UserError(
            f"the checkpoint {path} cannot be gone on from ({reason}): resume from another one, or "
            f"start a new training from its weights, with MODEL.WEIGHTS {path} and another "
            "OUTPUT_DIR"
        ) from error
