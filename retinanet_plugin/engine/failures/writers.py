"""Metrics that cannot be written: the training goes on without them, as it does without its log."""

import logging

from detectron2.utils.events import EventWriter, JSONWriter

logger = logging.getLogger("detectron2.writers")


class DispensableWriter(EventWriter):
    """A writer of metrics that is left out, with a warning, once its file cannot be written."""

    def __init__(self, writer: EventWriter, output_dir: str) -> None:
        self._writer: EventWriter | None = writer
        name = "metrics.json" if isinstance(writer, JSONWriter) else type(writer).__name__
        self._what = f"{name} in {output_dir}"

    def write(self) -> None:
        self._try("write")

    def close(self) -> None:
        self._try("close")

    def _try(self, method: str) -> None:
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)()
        except OSError as error:
            self._writer = None
            logger.warning(
                f"{self._what} cannot be written ({error.strerror or error}), and is left out from "
                "here on: the training goes on, and its metrics are in its log"
            )
