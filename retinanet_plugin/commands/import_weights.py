"""Turn weights of torchvision or mmdetection into a model of this package that detects the same.

torchvision: retinanet_resnet50_fpn and its v2, also as DeepForest has them. mmdetection: RetinaNet.
backbone: a ResNet for classification, of torchvision or timm, to train a detector from. OUTPUT gets
model.pth, which predict and Predictor take, and config.yaml for train_net.py.
"""

import argparse

from ..foreign_weights import FORMATS, write_model
from ..foreign_weights.translated import paths_in
from ..weights.weight_files import read_weights
from ..whole_files import refuse_existing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=list(FORMATS), help="what FILE is of")
    parser.add_argument("file", metavar="FILE", help="a state dict: .pth, .pt, .safetensors")
    parser.add_argument("output", metavar="OUTPUT", help="a folder for model.pth and config.yaml")
    parser.add_argument(
        "--class-names", nargs="+", default=[], metavar="NAME",
        help="in the order of the model's classes (default: those that are known, or numbers)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    refuse_existing(*paths_in(args.output))
    source = f"the file {args.file}"
    # Trainings of other programs save objects of theirs beside the weights.
    checkpoint = read_weights(args.file, "the file", skip_objects=True)
    model = FORMATS[args.format](checkpoint, args.class_names, source)
    model.check(source)
    weights, config = write_model(model, args.output)
    num_classes = model.settings.get("MODEL.RETINANET.NUM_CLASSES")
    classes = "" if num_classes is None else f", classes: {num_classes}"
    print(f"{model.title}: {len(model.weights)} tensors{classes}")
    print(f"wrote {weights} and {config}")
