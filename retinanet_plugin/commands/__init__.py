"""The commands of ``python -m retinanet_plugin``, a module each.

A module's docstring is its help; ``add_arguments(parser)`` declares, ``run(args)`` does.
"""

from . import (
    anchors,
    browse,
    compare_losses,
    convert,
    convert_weights,
    doctor,
    export,
    focal_loss_figures,
    import_weights,
    make_digits,
    new,
    predict,
    replay,
    report,
)

COMMANDS = {
    "anchors": anchors,
    "browse": browse,
    "compare-losses": compare_losses,
    "convert": convert,
    "convert-weights": convert_weights,
    "digits": make_digits,
    "doctor": doctor,
    "export": export,
    "focal-loss-figures": focal_loss_figures,
    "import-weights": import_weights,
    "predict": predict,
    "new": new,
    "replay": replay,
    "report": report,
}
