"""Text in aligned columns."""

from collections.abc import Sequence

Group = tuple[str, Sequence[Sequence[str]]]


def table(names: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """Lines of a table, two of them its head.

    Args:
        names: the first column, to the left: its title, then one cell for each row.
        groups: of the other columns, to the right: a title over the group and, of each column, its
            title and then one cell for each row.
    """
    width = max(map(len, names))
    blocks = [["".ljust(width), *(name.ljust(width) for name in names)]]
    blocks += [_block(title, columns) for title, columns in groups]
    return ["   ".join(parts).rstrip() for parts in zip(*blocks)]


def _block(title: str, columns: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in columns]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in zip(*columns)]
    width = max(len(title), len(lines[0]))
    return [title.rjust(width), *(line.rjust(width) for line in lines)]


def facts(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each name and what is to say of it."""
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name.ljust(width)}  {text}" for name, text in pairs]
