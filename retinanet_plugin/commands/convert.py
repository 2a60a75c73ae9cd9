"""Convert the annotations of a data set between formats: COCO, YOLO, Pascal VOC, LabelMe, CSV ...

The format of FROM is found by its content. Boxes, classes and splits are converted; polygons and
masks are not. Nothing is overwritten. docs/formats.md has the conventions of each format.
"""

import argparse

from ..data.findings import counted, one_line
from ..data.formats import FORMATS, read_dataset, write_dataset
from ..errors import UserError

_BY_ENDING = {".createml.json": "createml", ".json": "coco", ".csv": "csv"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help_ = "an annotation file, or a folder with annotations of one format"
    parser.add_argument("source", metavar="FROM", help=help_)
    help_ = "a new file (coco, createml, csv) or folder (labelme, voc, yolo)"
    parser.add_argument("target", metavar="TO", help=help_)
    help_ = "of TO; default: coco for .json, createml for .createml.json, csv for .csv"
    parser.add_argument("--format", choices=FORMATS, help=help_)
    help_ = "where the images of FROM are; default: looked for beside the annotations"
    parser.add_argument("--images", metavar="FOLDER", help=help_)


def run(args: argparse.Namespace) -> None:
    file_format = args.format or _format_of(args.target)
    dataset = read_dataset(args.source, args.images)
    print(f"read {dataset.format}: {args.source}, images in {dataset.image_folder}")
    written = write_dataset(dataset, args.target, file_format)
    for note in written.notes:
        print(f"note: {one_line(note)}")
    images = counted(len(written.images), "image", "images")
    empty = sum(not image.boxes for image in written.images)
    print(f"wrote {file_format}: {args.target}, {images}, {empty:,} of them without objects")
    for name, count in written.boxes_per_class().items():
        print(f"  {one_line(name)}: {counted(count, 'box', 'boxes')}")


def _format_of(target: str) -> str:
    for ending, file_format in _BY_ENDING.items():
        if target.lower().endswith(ending):
            return file_format
    known = ", ".join(FORMATS)
    raise UserError(f"{target} does not tell the format to write: add --format, one of {known}")
