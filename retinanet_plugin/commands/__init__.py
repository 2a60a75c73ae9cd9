"""The commands of ``python -m retinanet_plugin``, a module each.

A module's docstring is its help; ``add_arguments(parser)`` declares, ``run(args)`` does. A module
is imported when its command is given: some need Matplotlib and more, which takes a second or two.
"""

import ast
from importlib import import_module
from pathlib import Path
from types import ModuleType

# Names of commands and of their modules, in the order of the work: before a training, after one,
# and the rest.
COMMANDS = {
    "new": "new",
    "convert": "convert",
    "doctor": "doctor",
    "browse": "browse",
    "anchors": "anchors",
    "report": "report",
    "predict": "predict",
    "export": "export",
    "convert-weights": "convert_weights",
    "import-weights": "import_weights",
    "replay": "replay",
    "digits": "make_digits",
    "compare-losses": "compare_losses",
    "focal-loss-figures": "focal_loss_figures",
}


def module_of(command: str) -> ModuleType:
    return import_module(f".{COMMANDS[command]}", __package__)


def summary_of(command: str) -> str:
    """The first line of a module's docstring, without importing it."""
    path = Path(__file__).with_name(f"{COMMANDS[command]}.py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]
