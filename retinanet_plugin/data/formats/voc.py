"""Pascal VOC: an XML file for each image, read by the rules of ``annotations/voc.py``."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from ...errors import UserError
from ..annotations.voc import VocProblem, parse_voc_xml, read_voc_image, unread_objects
from ..findings import counted
from .annotated_images import AnnotatedImage, AnnotatedImages, Box, class_names_of
from .image_places import place_images, split_of_file
from .sizes import take_sizes
from .voc_lists import listed_splits


def read_voc(paths: Sequence[str], image_folder: str | None) -> AnnotatedImages:
    """Read the files of one folder; classes are in the order of the alphabet.

    In Pascal VOC the first pixel is 1 and the last one belongs to a box: (xmin - 1, ymin - 1, xmax,
    ymax) are the corners. Where a box of the folder begins before 1, its tool counts from 0, and
    the four numbers are taken as corners, which is noted.

    Args:
        paths: XML files in one folder.
        image_folder: of the images; None: look in the usual places.

    Raises:
        UserError: a file is not as meant, or its image is not found.
    """
    names, images = [], []
    for path in paths:
        try:
            tree = parse_voc_xml(path)
            images.append(_read_image(tree, path))
        except VocProblem as problem:
            _, what, remedy = problem.args
            raise UserError(f"{path} {what}: {remedy}") from problem
        names.append(_names(tree, path))
    folder = os.path.dirname(paths[0])
    stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    splits, of_lists = listed_splits(folder, set(stems))
    notes = _count_from_0(images, folder) + of_lists
    for image, stem, path in zip(images, stems, paths):
        image.split = splits.get(stem) or split_of_file(path)
    notes += place_images(images, names, paths[0], image_folder, paths)
    notes += take_sizes(images)
    return AnnotatedImages("Pascal VOC", class_names_of(images), images, notes)


def write_voc_file(image: AnnotatedImage, name: str, folder: str) -> None:
    """Write the XML file of an image, its numbers as :func:`read_voc` reads them.

    Decimals stay decimals, which Pascal VOC's own evaluation does not read.

    Args:
        name: of the image file.
        folder: gets the file.
    """
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = name
    size = ET.SubElement(root, "size")
    for key, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        ET.SubElement(size, key).text = str(value)
    for box in image.boxes:
        found = ET.SubElement(root, "object")
        flags = {"pose": "Unspecified", "truncated": "0", "difficult": str(int(box.ignored))}
        for key, text in ({"name": box.label} | flags).items():
            ET.SubElement(found, key).text = text
        bndbox = ET.SubElement(found, "bndbox")
        corners = {"xmin": box.x1 + 1, "ymin": box.y1 + 1, "xmax": box.x2, "ymax": box.y2}
        for key, number in corners.items():
            ET.SubElement(bndbox, key).text = f"{number:.15g}"
    ET.indent(root)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{os.path.splitext(name)[0]}.xml")
    ET.ElementTree(root).write(path, "utf-8")


def _read_image(tree: ET.Element, path: str) -> AnnotatedImage:
    for unread in unread_objects(tree):
        raise VocProblem(*unread)
    objects = tree.findall("object")
    names = [(found.findtext("name") or "").strip() for found in objects]
    if not all(names):
        raise VocProblem(
            "name", f"has an object {names.index('') + 1} without a name", "write its class"
        )
    for found, name in zip(objects, names):
        found.findall("name")[0].text = name
    image = read_voc_image(tree, names, evaluated=False)
    difficult = [(found.findtext("difficult") or "").strip() == "1" for found in objects]
    all_corners: list[tuple[float, float, float, float]] = [x["bbox"] for x in image["annotations"]]
    boxes = [
        Box(name, *corners, ignored)
        for name, corners, ignored in zip(names, all_corners, difficult)
    ]
    return AnnotatedImage("", boxes, image["width"], image["height"])


def _names(tree: ET.Element, path: str) -> tuple[str, ...]:
    """The XML's stem says which image it is; its ``filename`` is often that of an earlier state."""
    stem = os.path.splitext(os.path.basename(path))[0]
    file_name = (tree.findtext("filename") or "").strip()
    if os.path.splitext(file_name.replace("\\", "/").rpartition("/")[2])[0] == stem:
        return file_name, stem
    return (stem, file_name) if file_name else (stem,)


def _count_from_0(images: Sequence[AnnotatedImage], source: str) -> list[str]:
    """Undo the shift by 1 of files that count from 0; what is to be said of it."""
    first = [box for image in images for box in image.boxes if min(box.x1, box.y1) < 0]
    if not first:
        return []
    for image in images:
        image.boxes = [box._replace(x1=box.x1 + 1, y1=box.y1 + 1) for box in image.boxes]
    begin = counted(len(first), "box of", "boxes of")
    return [
        f"{begin} {source} begin before pixel 1, Pascal VOC's first one: all numbers there were "
        "taken as corners counted from 0"
    ]
