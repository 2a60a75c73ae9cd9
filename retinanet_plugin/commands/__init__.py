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

# In the order of the work: before a training, after one, and the rest.
COMMANDS = {
    "new": new,
    "convert": convert,
    "doctor": doctor,
    "browse": browse,
    "anchors": anchors,
    "report": report,
    "predict": predict,
    "export": export,
    "convert-weights": convert_weights,
    "import-weights": import_weights,
    "replay": replay,
    "digits": make_digits,
    "compare-losses": compare_losses,
    "focal-loss-figures": focal_loss_figures,
}
