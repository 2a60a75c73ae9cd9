"""What people run besides training (train_net.py). COMMAND --help describes one command."""

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from .commands import COMMANDS, module_of, summary_of
from .engine import keep_console_readable, one_sentence_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments (default: of the process) and run the command that they name."""
    with one_sentence_errors():  # also of what a command imports
        args = _parsed(sys.argv[1:] if argv is None else argv)
        args.run(args)


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m retinanet_plugin", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        subparser = subparsers.add_parser(name, help=summary_of(name))
        if name in argv[:1]:
            command = module_of(name)
            subparser.description = command.__doc__
            command.add_arguments(subparser)
            subparser.set_defaults(run=command.run)
    return parser.parse_args(argv)


def end_at_sigterm(number: int, frame: FrameType | None) -> None:
    """A signal's handler: as after Ctrl-C, what was begun is put away."""
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    print("ended by SIGTERM", file=sys.stderr)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    keep_console_readable()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # while the package was imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, end_at_sigterm)
    try:
        main()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # nothing is left to put away
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
