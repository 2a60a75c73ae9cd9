"""The text of a planned config: sections, and before each value the reason for it."""

import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

from .choice import Choice

_WIDTH = 98
_INDENT = "  "


class _NoAliases(yaml.SafeDumper):
    """Writes a list as often as it is there, instead of a reference to the first."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def config_text(base: str, title: str, choices: Sequence[Choice]) -> str:
    """YAML that :func:`retinanet_plugin.config.load_config` reads.

    Args:
        base: the file to build on, relative to the one that the text is for.
        title: the first comment.
        choices: each key once.
    """
    tree: dict[str, Any] = {}
    for choice in choices:
        *sections, name = choice.key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = choice
    lines = [*_comment(title, ""), f"_BASE_: {_plain(base)}", *_section(tree, "")]
    return "\n".join(lines) + "\n"


def _section(tree: dict[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for name, node in tree.items():
        if isinstance(node, dict):
            lines += [f"{indent}{name}:", *_section(node, indent + _INDENT)]
        else:
            lines += _value(name, node, indent)
    return lines


def _value(name: str, choice: Choice, indent: str) -> list[str]:
    line = f"{indent}{name}: {_plain(choice.value)}"
    with_reason = f"{line}  # {choice.reason}"
    if not choice.reason or len(with_reason) <= _WIDTH:
        return [with_reason if choice.reason else line]
    return [*_comment(choice.reason, indent), line]


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )


def _plain(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.dump(
        value, Dumper=_NoAliases, default_flow_style=True, width=10**6, allow_unicode=True
    )
    return text.removesuffix("...\n").strip()
