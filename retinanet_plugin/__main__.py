"""``python -m retinanet_plugin COMMAND``: what people run besides training."""

import argparse
import signal
from collections.abc import Sequence

from .commands import COMMANDS
from .engine import keep_console_readable, one_sentence_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments (default: of the process) and run the command that they name."""
    parser = argparse.ArgumentParser(prog="python -m retinanet_plugin", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        description = command.__doc__ or ""
        subparser = subparsers.add_parser(
            name, help=description.splitlines()[0], description=description
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    args = parser.parse_args(argv)
    with one_sentence_errors():
        args.run(args)


if __name__ == "__main__":
    keep_console_readable()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # while the package was imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
