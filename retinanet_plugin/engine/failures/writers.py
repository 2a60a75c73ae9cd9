"""Metrics that cannot be written: the training goes on without them, as it does without its log."""

import logging
import os

from detectron2.utils.events import EventWriter, JSONWriter

from ..checkpoints.file_names import METRICS

logger = logging.getLogger("detectron2.writers")


class DispensableWriter(EventWriter):
    """A writer of metrics that is left out, with a warning, once its file cannot be written.

    That of ``metrics.json`` makes it and the log anew, and says so, if they were removed: writing
    into a removed file would be no error.
    """

    def __init__(self, writer: EventWriter, output_dir: str) -> None:
        self._writer: EventWriter | None = writer
        self._output_dir = output_dir
        name = METRICS if isinstance(writer, JSONWriter) else type(writer).__name__
        self._what = f"{name} in {output_dir}"

    def write(self) -> None:
        if isinstance(self._writer, JSONWriter) and "://" not in self._output_dir:
            self._replace_removed(os.path.join(self._output_dir, METRICS))
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

    def _replace_removed(self, path: str) -> None:
        if os.path.exists(path):
            return
        try:
            os.makedirs(self._output_dir, exist_ok=True)
            self._writer = JSONWriter(path)
            _reopen_removed_logs()
        except OSError:
            return  # which writing tells
        logger.warning(
            f"{path} was removed while the training ran: it begins anew, and what it had is lost; "
            f"look whether checkpoints in {self._output_dir} are lost, too"
        )


def _reopen_removed_logs() -> None:
    for name in ("detectron2", "fvcore"):
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler, logging.StreamHandler):
                continue
            path = str(getattr(handler.stream, "name", ""))
            if path.endswith("log.txt") and not os.path.exists(path):
                handler.setStream(open(path, "a"))  # noqa: SIM115
