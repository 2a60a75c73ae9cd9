"""The one exception for what a user can mend: a wrong key, file, name or number."""


class UserError(ValueError):
    """One sentence: what is wrong, where (file, key, id), and the remedy.

    ``train_net.py`` and ``python -m retinanet_plugin`` print it without a traceback and exit
    with status 1; code that imports this package catches it as a :class:`ValueError`.
    """
