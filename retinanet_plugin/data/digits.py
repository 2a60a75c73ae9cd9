"""A small real detection task without a download: handwritten digits on photographs.

The digits are the 1,797 scans of the UCI set (8x8 grey values) and the backgrounds the two
photographs that scikit-learn carries.
"""

import json
import os
from typing import Any

import cv2
import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from ..new_folders import check_new_folder, whole_folder
from ..whole_files import check_writable

IMAGE_SIZE = 160
# The longer side of a digit, pixels.
DIGIT_SIZE = (20, 80)
MAX_DIGITS = 5
NUM_IMAGES = {"train": 2000, "val": 240}
# The share of the digits that only val images show.
VAL_SHARE = 0.2

_Box = tuple[int, int, int, int]  # x, y, width, height


def write_digits(output: str, seed: int = 0, num_images: dict[str, int] | None = None) -> None:
    """Write COCO-format train and val sets; the same seed gives the same bytes.

    Makes ``output/{train,val}/*.jpg`` and ``output/annotations/{train,val}.json`` with boxes in
    pixels, tight around the ink. No digit of val is shown in train. ``output`` appears only when
    it is complete.

    Args:
        output: a folder that is not there or empty.
        seed: of everything random.
        num_images: images of ``train`` and ``val``; None: ``NUM_IMAGES``.

    Raises:
        UserError: ``output`` has files, or cannot be written to.
    """
    check_new_folder(output)
    check_writable(output)
    with whole_folder(output) as folder:
        _write(folder, seed, num_images or NUM_IMAGES)


def _write(folder: str, seed: int, num_images: dict[str, int]) -> None:
    glyphs, labels, photographs = _load_sources()
    order = np.random.default_rng(seed).permutation(len(glyphs))
    num_val = int(len(glyphs) * VAL_SHARE)
    glyphs_of = {"val": order[:num_val], "train": order[num_val:]}

    os.mkdir(os.path.join(folder, "annotations"))
    for number, split in enumerate(("train", "val")):
        os.mkdir(os.path.join(folder, split))
        rng = np.random.default_rng([seed, number])
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id in range(1, num_images[split] + 1):
            image, boxes, chosen = _draw_image(rng, glyphs, glyphs_of[split], photographs)
            file_name = f"{image_id:05d}.jpg"
            _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
            # OpenCV's own writing says nothing where no room is left.
            with open(os.path.join(folder, split, file_name), "wb") as file:
                file.write(jpeg.tobytes())
            images.append(
                {"id": image_id, "file_name": file_name, "height": IMAGE_SIZE, "width": IMAGE_SIZE}
            )
            for (x, y, w, h), glyph in zip(boxes, chosen):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": int(labels[glyph]) + 1,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
        coco = {
            "info": {"description": f"handwritten digits on photographs, {split}, seed {seed}"},
            "categories": [{"id": digit + 1, "name": str(digit)} for digit in range(10)],
            "images": images,
            "annotations": annotations,
        }
        with open(os.path.join(folder, "annotations", f"{split}.json"), "w") as f:
            json.dump(coco, f)


def _load_sources() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Grey values (1797, 8, 8) in 0..1, their digits (1797,), and BGR photographs."""
    digits = load_digits()
    photographs = [image[:, :, ::-1] for image in load_sample_images().images]
    return digits.images.astype(np.float32) / 16, digits.target, photographs


def _draw_image(
    rng: np.random.Generator, glyphs: np.ndarray, choice: np.ndarray, photographs: list[np.ndarray]
) -> tuple[np.ndarray, list[_Box], list[int]]:
    """One image, its boxes [(x, y, w, h)] and the indices of the digits in them."""
    image = _draw_background(rng, photographs)
    boxes: list[_Box] = []
    chosen: list[int] = []
    for _ in range(rng.integers(1, MAX_DIGITS + 1)):
        glyph = rng.choice(choice)
        ink = _draw_ink(glyphs[glyph], int(rng.integers(DIGIT_SIZE[0], DIGIT_SIZE[1] + 1)))
        box = _free_place(rng, ink.shape, boxes)
        if box is None:
            continue
        x, y, w, h = box
        patch = image[y : y + h, x : x + w]
        colour = _contrasting_colour(rng, patch)
        patch += ink[:, :, None] * (colour - patch)
        boxes.append(box)
        chosen.append(glyph)
    return image.round().astype(np.uint8), boxes, chosen


def _draw_background(rng: np.random.Generator, photographs: list[np.ndarray]) -> np.ndarray:
    """A random square of a photograph, (IMAGE_SIZE, IMAGE_SIZE, 3), float32, BGR."""
    photograph = photographs[rng.integers(len(photographs))]
    side = rng.integers(IMAGE_SIZE // 2, min(photograph.shape[:2]) + 1)
    y, x = (rng.integers(limit - side + 1) for limit in photograph.shape[:2])
    square = photograph[y : y + side, x : x + side]
    if rng.random() < 0.5:
        square = square[:, ::-1]
    square = cv2.resize(
        np.ascontiguousarray(square), (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA
    )
    return square.astype(np.float32)


def _draw_ink(glyph: np.ndarray, size: int) -> np.ndarray:
    """Opacity 0..1 of a digit, cropped to its ink, with ``size`` pixels on the longer side."""
    # A margin of one cell keeps the strokes at the border from being cut.
    scale = 8
    smooth = cv2.resize(np.pad(glyph, 1), None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    ys, xs = np.nonzero(smooth > 0.5)
    smooth = smooth[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    h, w = (max(1, round(side * size / max(smooth.shape))) for side in smooth.shape)
    smooth = cv2.resize(smooth, (w, h), interpolation=cv2.INTER_LINEAR)
    # From half-grey on it is ink: the outline is sharp within a pixel or two.
    return np.clip((smooth - 0.35) / 0.3, 0, 1)


def _free_place(
    rng: np.random.Generator, shape: tuple[int, ...], boxes: list[_Box], tries: int = 50
) -> _Box | None:
    """A box (x, y, w, h) that touches none of ``boxes``, or None where there is no room."""
    h, w = shape
    for _ in range(tries):
        x, y = rng.integers(IMAGE_SIZE - w + 1), rng.integers(IMAGE_SIZE - h + 1)
        if all(x + w < bx or bx + bw < x or y + h < by or by + bh < y for bx, by, bw, bh in boxes):
            return int(x), int(y), w, h
    return None


def _contrasting_colour(rng: np.random.Generator, patch: np.ndarray, tries: int = 16) -> np.ndarray:
    """A random BGR colour that can be told from nine in ten pixels of the background ``patch``.

    The mean alone says little: petals and sky can average to a colour that neither has.
    """
    colours = rng.integers(0, 256, (tries, 3)).astype(np.float32)
    pixels = patch[::4, ::4].reshape(-1, 3)
    distances = np.abs(colours[:, None] - pixels).sum(axis=2)
    contrasts = np.quantile(distances, 0.1, axis=1)
    enough = np.flatnonzero(contrasts > 200)
    return colours[enough[0] if len(enough) else contrasts.argmax()]
