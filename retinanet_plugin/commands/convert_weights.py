"""Write the weights of a checkpoint to a smaller file, to share them: .safetensors or .pth.

Beside the weights, class names and config are kept, so that the file is enough to predict with;
the state of the training is not. MODEL.WEIGHTS takes the file as it takes the checkpoint.
"""

import argparse
import os

from ..weights.weight_files import read_weights, write_weights
from ..whole_files import refuse_existing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help_ = "a file or an address that MODEL.WEIGHTS can be: .pth, .pkl, .safetensors"
    parser.add_argument("input", metavar="IN", help=help_)
    parser.add_argument("output", metavar="OUT", help="a file: .safetensors or .pth")


def run(args: argparse.Namespace) -> None:
    refuse_existing(args.output)
    checkpoint = read_weights(args.input, "the file")
    write_weights(args.output, checkpoint)
    classes = checkpoint.get("class_names") or ()
    size = os.path.getsize(args.output) / 1e6
    named = f", {len(classes)} classes" if classes else ""
    print(f"wrote {len(checkpoint['model'])} tensors, {size:.1f} MB{named}: {args.output}")
