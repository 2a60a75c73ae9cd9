"""The commands of ``python -m retinanet_plugin``, a module each.

A module's docstring is its help; ``add_arguments(parser)`` declares, ``run(args)`` does.
"""

from . import (
    anchors,
    browse,
    compare_losses,
    convert_weights,
    doctor,
    focal_loss_figures,
    make_digits,
    new,
    replay,
    visualize,
)

COMMANDS = {
    "anchors": anchors,
    "browse": browse,
    "compare-losses": compare_losses,
    "convert-weights": convert_weights,
    "digits": make_digits,
    "doctor": doctor,
    "focal-loss-figures": focal_loss_figures,
    "new": new,
    "replay": replay,
    "visualize": visualize,
}
