"""Text in aligned columns."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: its first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in (header, *rows)
    ]


def facts(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each name and what is to say of it."""
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name.ljust(width)}  {text}" for name, text in pairs]
