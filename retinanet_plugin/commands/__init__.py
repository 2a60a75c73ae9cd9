"""The commands of ``python -m retinanet_plugin``, a module each.

A module's docstring is its help; ``add_arguments(parser)`` declares, ``run(args)`` does.
"""
from . import digits, visualize

COMMANDS = {"digits": digits, "visualize": visualize}
