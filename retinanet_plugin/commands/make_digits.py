"""Write the digits data set: handwritten digits on photographs, in COCO's format."""

import argparse

from ..errors import UserError
from .arguments import natural_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="folder to make")
    parser.add_argument(
        "--seed", type=natural_number, default=0,
        help="the same seed writes the same bytes (default: 0)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    try:
        from ..data.digits import NUM_IMAGES, write_digits
    except ImportError as error:
        raise UserError(
            f"the digits need scikit-learn and OpenCV, which could not be imported ({error}): "
            "python -m pip install scikit-learn opencv-python-headless"
        ) from error
    write_digits(args.output, args.seed)
    print(f"wrote {NUM_IMAGES['train']} training and {NUM_IMAGES['val']} val images: {args.output}")
