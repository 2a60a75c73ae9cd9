"""Reading config files: YAML that is data alone, with ``_BASE_``, as Detectron2 reads it."""

import ast
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import yaml
from detectron2.utils.file_io import PathManager

from .errors import UserError

_BASE = "_BASE_"
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_PYTHON = "tag:yaml.org,2002:python/"
_TUPLE = _PYTHON + "tuple"
# The zoo's Base-RetinaNet.yaml computes its anchor sizes so, and files of users are made from it.
_EVAL = _PYTHON + "object/apply:eval"
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def read_config_file(path: str) -> dict[str, Any]:
    """The content of a config file, merged over the files that its ``_BASE_`` names.

    Nothing in it is run: of the tags of Python only tuples, and ``eval`` of arithmetic as in the
    zoo's RetinaNet configs, have a meaning.

    Raises:
        UserError: the file or one it builds on cannot be read, is no YAML, no mapping, gives a key
            twice, would run code, or builds on itself.
    """
    return _read(path, ())


def _read(path: str, builders: tuple[str, ...]) -> dict[str, Any]:
    """``builders`` are the files that build on this one, the first is the one that was given."""
    if path in builders:
        chain = " -> ".join([*builders[builders.index(path) :], path])
        raise UserError(f"the config file {path} builds on itself ({chain}): correct _BASE_")
    if path.endswith(".py"):
        raise UserError(
            f"the config file {path} is Python, which is not run here: give a YAML file (lazy "
            "configs are trained by Detectron2's tools/lazyconfig_train_net.py)"
        )
    content = _parse(path, _text(path, builders))
    bases = content.pop(_BASE, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise UserError(f"{path} has the _BASE_ {base!r}: write the path of a config file")
        base = os.path.expanduser(base)
        if "://" not in base:  # of the web; all others are relative to this file
            base = os.path.normpath(os.path.join(os.path.dirname(path), base))
        _merge(_read(base, (*builders, path)), merged, path)
    _merge(content, merged, path)
    return merged


def _text(path: str, builders: tuple[str, ...]) -> str:
    if builders:
        source, remedy = f"{builders[-1]} builds on the config file {path}, which", "its _BASE_"
    else:
        source, remedy = f"the config file {path}", "--config-file"
    if not PathManager.exists(path):
        raise UserError(f"{source} does not exist: correct {remedy}")
    if PathManager.isdir(path):
        raise UserError(f"{source} is a folder: correct {remedy}")
    try:
        with PathManager.open(path, "rb") as f:
            content = f.read()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{source} cannot be read ({reason}): correct {remedy}") from error
    try:
        return cast(str, content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source} is not text in UTF-8 (byte {error.start}): save it as UTF-8, or correct "
            f"{remedy}"
        ) from error


def _parse(path: str, text: str) -> dict[str, Any]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise UserError(
                f"the config file {path} is empty: write KEY: VALUE, or correct its path"
            )
        for child in _nodes(node):
            _check_node(child, path)
        content = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _not_yaml(path, error) from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply to be a config: correct it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no mapping but {str(content)[:40]!r}: write KEY: VALUE")
    return content


def _not_yaml(path: str, error: yaml.YAMLError) -> UserError:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}): correct it")
    remedy = "indent with spaces, not tabs" if "'\\t'" in str(error) else "correct it"
    return UserError(
        f"{path} is not valid YAML in line {mark.line + 1}, column {mark.column + 1} "
        f"({getattr(error, 'problem', error)}): {remedy}"
    )


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with tuples, and with arithmetic for ``eval``."""


_Loader.add_constructor(_TUPLE, lambda loader, node: tuple(loader.construct_sequence(node, True)))
_Loader.add_constructor(_EVAL, lambda loader, node: _compute(_expression(node), {}))


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Every node of a document once, whatever its aliases point to."""
    seen, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            waiting += [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _check_node(node: yaml.Node, path: str) -> None:
    """Refuse tags that run code, and of two equal keys the second, which YAML would take."""
    line = node.start_mark.line + 1
    if node.tag == _EVAL:
        try:
            _compute(_expression(node), {})
        except (ArithmeticError, SyntaxError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} would run code in line {line} (!!python/object/apply:eval), of which only "
                "arithmetic of numbers and lists is understood: write the value itself"
            ) from error
    elif node.tag.startswith(_PYTHON) and node.tag != _TUPLE:
        raise UserError(
            f"{path} would run code in line {line} (!!{node.tag.removeprefix(_PYTHON[:-7])}), "
            "which is not done: write the value itself"
        )
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag == _MERGE:
            continue
        if key.tag != _TEXT:
            raise UserError(f"{path} has a key in line {line} that is no name: correct it")
        if key.value in lines:
            raise UserError(
                f"{path} has the key {key.value} twice, in lines {lines[key.value]} and {line}: "
                "keep one of them"
            )
        lines[key.value] = line


def _expression(node: yaml.Node) -> ast.expr:
    """The one argument of ``eval``."""
    if not isinstance(node, yaml.SequenceNode) or len(node.value) != 1:
        raise ValueError("eval takes one text")
    return ast.parse(str(node.value[0].value).strip(), mode="eval").body


def _compute(node: ast.expr, names: dict[str, Any]) -> Any:
    """The value of numbers, lists, ``+ - * / **``, and ``[... for x in a list]``.

    Raises:
        ValueError: it has anything else, or powers of large numbers.
    """
    match node:
        case ast.Constant(value=int() | float()):
            return node.value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.UnaryOp(op=ast.USub()):
            return -_compute(node.operand, names)
        case ast.List() | ast.Tuple():
            values = [_compute(element, names) for element in node.elts]
            return values if isinstance(node, ast.List) else tuple(values)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            left, right = _compute(node.left, names), _compute(node.right, names)
            if not all(isinstance(x, (int, float)) and abs(x) <= 2**16 for x in (left, right)):
                raise ValueError("no small numbers")
            if isinstance(node.op, ast.Pow) and abs(right) > 16:
                raise ValueError("a large power")
            return _OPERATORS[type(node.op)](left, right)
        case ast.ListComp(generators=[ast.comprehension(target=ast.Name(id=name), ifs=[])]):
            values = _compute(node.generators[0].iter, names)
            return [_compute(node.elt, {**names, name: value}) for value in values]
    raise ValueError("no arithmetic")


def _merge(new: dict[str, Any], old: dict[str, Any], path: str, prefix: str = "") -> None:
    """Merge ``new`` into ``old``, sections key by key."""
    for key, value in new.items():
        if isinstance(value, dict) and key in old:
            if not isinstance(old[key], dict):
                raise UserError(
                    f"{path} has {prefix}{key} as a section, but its _BASE_ as the value "
                    f"{old[key]!r}: correct one of them"
                )
            _merge(value, old[key], path, f"{prefix}{key}.")
        else:
            old[key] = value
