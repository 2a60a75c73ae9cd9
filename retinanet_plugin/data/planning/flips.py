"""Whether images may be mirrored: not where classes are told apart by left and right."""

import re
from collections.abc import Sequence

from .choice import Choice

_SIDED = {"left", "right", "arrow", "letter", "digit", "text", "clockwise"}
_FEWEST_LETTERS = 5


def choose_flip(class_names: Sequence[str], is_allowed: bool) -> Choice:
    """Horizontal flips, unless the user or the names of the classes speak against them.

    Args:
        class_names: K names.
        is_allowed: whether the user said nothing against them.
    """
    key = "INPUT.RANDOM_FLIP"
    if not is_allowed:
        return Choice(key, "none", "--no-flip")
    sided = [name for name in class_names if _words(name) & _SIDED]
    if sided:
        return Choice(key, "none", f"the class {sided[0]!r} may not be itself in a mirror")
    if _are_characters(class_names):
        return Choice(key, "none", "the classes look like letters or digits, which have no mirror")
    return Choice(key, "horizontal", "no class name speaks against it; --no-flip switches it off")


def _words(name: str) -> set[str]:
    """The words of a name in any way of writing: ``turn_left``, ``TurnLeft``, ``turn-left``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return {word.lower().removesuffix("s") for word in re.findall(r"[^\W_]+", spaced)}


def _are_characters(class_names: Sequence[str]) -> bool:
    """Whether most classes are single letters or digits, and they are more than abbreviations."""
    single = [name for name in class_names if len(name.strip()) == 1]
    return len(single) >= max(_FEWEST_LETTERS, len(class_names) / 2)
