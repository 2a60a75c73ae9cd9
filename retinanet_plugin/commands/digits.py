"""Write the digits data set: handwritten digits on photographs, in COCO's format."""
from ..data.digits import NUM_IMAGES, write_digits


def add_arguments(parser):
    parser.add_argument("output", metavar="OUTPUT", help="folder to make")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed writes the same bytes (default: 0)"
    )


def run(args):
    write_digits(args.output, args.seed)
    print(f"wrote {NUM_IMAGES['train']} training and {NUM_IMAGES['val']} val images: {args.output}")
