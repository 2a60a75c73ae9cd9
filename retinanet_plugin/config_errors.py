"""What yacs says of a wrong key or value, as one sentence that names key, value and source."""

import contextlib
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode

from .errors import UserError

# Of a value of another type than the default: types, value and key.
_TYPE_MISMATCH = re.compile(
    r"Type mismatch \(<class '(.*)'> vs. <class '(.*)'>\) with values \(.* vs. (.*)\) for config "
    r"key: (\S+)",
    re.DOTALL,
)

# Keys whose default is empty, which shows nobody what to write.
_SHAPES = {
    "DATASETS.COCO_JSON": "a list of (name, annotation file, image folder), such as "
    "[['my_train', 'train.json', 'train_images']]",
    "INPUT.SCALE_JITTER": "two scales above 0, such as [0.5, 2.0]",
    "TEST.EXPECTED_RESULTS": "a list such as [['bbox', 'AP', 38.5, 0.2]]",
}


@contextlib.contextmanager
def merging(cfg: CfgNode, source: str) -> Iterator[None]:
    """Turn the many errors of yacs into one sentence about ``source``, which goes into ``cfg``.

    Raises:
        UserError: an unknown key, or a value of the wrong type.
    """
    known = list(_keys(cfg))
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise unknown_key(str(error.args[0]).rsplit(" ", 1)[-1], known, source) from error
    except (ValueError, AssertionError, AttributeError, TypeError) as error:
        mismatch = _TYPE_MISMATCH.search(str(error))
        if mismatch:
            raise _wrong_type(cfg, source, *mismatch.groups()) from error
        reason = " ".join(str(error).partition(";")[0].split())
        raise UserError(f"{source}: {reason}: correct it") from error


def check_keys(cfg: CfgNode, keys: Sequence[str], source: str) -> None:
    """
    Raises:
        UserError: one of ``keys`` is not known.
    """
    known = list(_keys(cfg))
    for key in keys:
        if key not in known:
            raise unknown_key(key, known, source)


def no_section(cfg: CfgNode, key: str, value: Any, source: str) -> UserError:
    """The error of a value where ``cfg`` has a section."""
    name = next(iter(_value(cfg, key)))
    return UserError(
        f"{key} is {value} in {source}, but it is a section: set the keys in it, such as "
        f"{key}.{name}"
    )


def unknown_key(key: str, known: Sequence[str], source: str) -> UserError:
    """The error of a key that is not ``known``, with the one that was probably meant."""
    section, _, name = key.rpartition(".")
    # The same name in another section, such as SOLVER.NUM_WORKERS; RetinaNet's before others.
    elsewhere = sorted((k for k in known if k.endswith("." + name)), key=_is_not_retinanets)
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.8) or elsewhere[:1]
    if not nearest:
        remedy = "correct or remove it"
    elif nearest == [key]:  # as one word, in a file
        remedy = f"write {name} into the section {section}"
    else:
        remedy = f"the nearest known key is {nearest[0]}"
    return UserError(f"unknown config key {key} in {source}: {remedy}")


def _is_not_retinanets(key: str) -> bool:
    return not key.startswith("MODEL.RETINANET.")


def _wrong_type(
    cfg: CfgNode, source: str, wanted: str, given: str, value: str, key: str
) -> UserError:
    """Types by their names in Python; ``value`` as text."""
    default = _value(cfg, key)
    if isinstance(default, CfgNode):
        return no_section(cfg, key, value, source)
    if given == "str":
        value = repr(value)
    if given.endswith("CfgNode"):
        value, right = "a section", _SHAPES.get(key, f"a value such as {default!r}")
    elif wanted == "bool":
        right = "True or False"
    elif wanted in ("tuple", "list") and value[1:2] in ("(", "["):
        right = f"a {wanted}, with all its brackets and quotes"
    elif key in _SHAPES:
        right = _SHAPES[key]
    elif wanted in ("tuple", "list"):
        right = f"({value},)" if wanted == "tuple" else f"[{value}]"
    elif (wanted, given) == ("int", "float") and float(value).is_integer():
        value, right = f"the float {value}", f"the whole number {float(value):.0f}"
    else:
        right = f"{'an' if wanted == 'int' else 'a'} {wanted} such as {default!r}"
    return UserError(f"{key} is {value} in {source}: write {right}")


def _value(cfg: CfgNode, key: str) -> Any:
    value: Any = cfg
    for name in key.split("."):
        value = value[name]
    return value


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """Sections and keys, by their full names."""
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")
