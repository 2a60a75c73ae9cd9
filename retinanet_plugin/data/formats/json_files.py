"""JSON files of annotation tools."""

import json
from typing import Any

from ...errors import UserError


def read_json_file(path: str) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): correct its path or permissions"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): export it again") from error
