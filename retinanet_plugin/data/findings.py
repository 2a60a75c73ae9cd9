"""What is wrong in the data, or probably not meant: counted by kind, each with an example."""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError


@dataclass
class Finding:
    """One kind of mistake in one source."""

    source: str  # what it is in: "the annotation file val.json of my_val"
    example: str  # the first of its kind, a clause: "annotation 106 (a.jpg) has bbox [1, 2]"
    remedy: str  # what to do, without a capital letter and a full stop
    count: int = 1

    def __str__(self) -> str:
        more = f" ({self.count - 1:,} more like it)" if self.count > 1 else ""
        return one_line(f"{self.source}: {self.example}{more}: {self.remedy}")


@dataclass
class Findings:
    """Errors, which must be mended before training, and warnings; in the order of their finding."""

    errors: dict[tuple[str, str], Finding] = field(default_factory=dict)
    warnings: dict[tuple[str, str], Finding] = field(default_factory=dict)

    def error(self, kind: str, source: str, example: str, remedy: str, count: int = 1) -> None:
        """Count errors; ``example`` and ``remedy`` of the first of its kind in ``source`` stay.

        Args:
            kind: what makes two errors the same, such as "bbox": never shown.
            source, example, remedy: see :class:`Finding`.
            count: how many there are.
        """
        _count(self.errors, kind, source, example, remedy, count)

    def warn(self, kind: str, source: str, example: str, remedy: str, count: int = 1) -> None:
        """Count warnings, as :meth:`error` does."""
        _count(self.warnings, kind, source, example, remedy, count)

    def extend(self, others: "Findings") -> None:
        """Add what others have found."""
        for mine, theirs in ((self.errors, others.errors), (self.warnings, others.warnings)):
            for (kind, source), f in theirs.items():
                _count(mine, kind, source, f.example, f.remedy, f.count)

    def tell(self, logger: logging.Logger) -> None:
        """Log the warnings.

        Raises:
            UserError: see :meth:`raise_errors`.
        """
        for warning in self.warnings.values():
            logger.warning(str(warning))
        self.raise_errors()

    def raise_errors(self) -> None:
        """
        Raises:
            UserError: the first error, and how many other kinds there are.
        """
        if not self.errors:
            return
        first, *others = self.errors.values()
        more = (
            f" ({counted(len(others), 'more kind', 'more kinds')} of mistakes: python -m "
            "retinanet_plugin doctor lists them)"
            if others
            else ""
        )
        raise UserError(f"{first}{more}")


def shown(value: Any, most: int = 100) -> str:
    """A value of a file as JSON writes it, so that the text "1" is not taken for the number 1."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def image_named(image: dict[str, Any]) -> str:
    """An image of Detectron2's dataset dicts as findings name it: ``image 7 (a.jpg)``."""
    return f"image {shown(image.get('image_id'))} ({image['file_name']})"


def counted(count: int, one: str, more: str) -> str:
    """``1 class`` or ``2 classes``."""
    return f"{count:,} {one if count == 1 else more}"


def name_alike(name: str, names: Iterable[str]) -> str | None:
    """The one of the names that differs in capital letters or blanks alone; None: none does."""
    key = name.casefold().split()
    return next((other for other in names if other.casefold().split() == key), None)


def one_line(text: str) -> str:
    """``text`` in one line that every terminal and log file can take."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in " ".join(text.split())
    )


def _count(
    found: dict[tuple[str, str], Finding],
    kind: str,
    source: str,
    example: str,
    remedy: str,
    count: int,
) -> None:
    if (kind, source) in found:
        found[kind, source].count += count
    else:
        found[kind, source] = Finding(source, example, remedy, count)
