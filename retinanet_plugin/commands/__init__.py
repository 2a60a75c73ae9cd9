"""The commands of ``python -m retinanet_plugin``, a module each.

A module's docstring is its help; ``add_arguments(parser)`` declares, ``run(args)`` does.
"""

from . import (
    anchors,
    browse,
    compare_losses,
    convert_weights,
    doctor,
    export,
    focal_loss_figures,
    make_digits,
    new,
    predict,
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
    "export": export,
    "focal-loss-figures": focal_loss_figures,
    "new": new,
    "predict": predict,
    "replay": replay,
    "visualize": visualize,
}
