"""The commands of ``python -m retinanet_plugin``, a module each.

A module's docstring is its help; ``add_arguments(parser)`` declares, ``run(args)`` does.
"""

from . import compare_losses, digits, focal_loss_figures, visualize

COMMANDS = {
    "compare-losses": compare_losses,
    "digits": digits,
    "focal-loss-figures": focal_loss_figures,
    "visualize": visualize,
}
