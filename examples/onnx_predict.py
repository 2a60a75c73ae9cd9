"""Detect in an image with a file of ``export onnx``, without PyTorch."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

USAGE = "onnx_predict.py model.onnx image.jpg"
if len(sys.argv) != 3:
    sys.exit(f"error: {len(sys.argv) - 1} files are given, not a model and one image: {USAGE}")
try:
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    notes = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    preparing, decoding, padding = (notes[k] for k in ("preprocessing", "decoding", "padding"))
except Exception as error:  # of a damaged file, onnxruntime raises anything
    sys.exit(f"error: {sys.argv[1]} is no file of export onnx: {error}")
try:
    picture = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
except (OSError, ValueError, SyntaxError) as error:  # of Pillow
    sys.exit(f"error: {sys.argv[2]} cannot be read: {error}")

# The image, resized, in the model's order of colours; at the right and below, the mean colour.
short, long = sorted(picture.size)
scale = min(preparing["min_size_test"] / short, preparing["max_size_test"] / long)
width, height = (int(side * scale + 0.5) for side in picture.size)
pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
pixels = pixels[:, :, ::-1] if preparing["format"] == "BGR" else pixels
padded = [-(-side // padding["divisor"]) * padding["divisor"] for side in (height, width)]
images = np.tile(np.float32(preparing["pixel_mean"]).reshape(1, 3, 1, 1), (1, 1, *padded))
images[0, :, :height, :width] = pixels.transpose(2, 0, 1)


def show(box, score, cls):
    """Print a detection, in pixels of the file."""
    box = box * np.tile(np.divide(picture.size, (width, height)), 2)
    box = np.clip(box, 0, np.tile(picture.size, 2))
    print(notes["class_names"][cls], f"{score:.4f}", *(f"{side:.2f}" for side in box))


if decoding["in_graph"]:  # of export onnx --nms; all that follows is in it
    for detection in zip(*session.run(["boxes", "scores", "classes"], {"images": images})):
        show(*detection)
    sys.exit()

logits, deltas, *ious = (output[0] for output in session.run(None, {"images": images}))

# Anchors (R, 4): levels one after the other, in each by row, column and kind.
anchors = []
for level in notes["anchors"]:
    y, x = (np.arange(-(-s // level["stride"])) + level["offset"] for s in padded)
    x, y = np.meshgrid(x * level["stride"], y * level["stride"])
    anchors.append((np.stack([x, y, x, y], -1)[:, :, None] + level["boxes"]).reshape(-1, 4))

# What scores above the threshold, of each level the best, as boxes (x1, y1, x2, y2) in pixels of
# the resized image.
scores = 1 / (1 + np.exp(-logits))
scores = scores / (1 + np.exp(-ious[0][:, None])) if ious else scores
rows, classes = np.nonzero(scores > decoding["score_thresh"])
order = np.argsort(-scores[rows, classes], kind="stable")
levels = np.repeat(np.arange(len(anchors)), [len(level) for level in anchors])[rows[order]]
best = [order[levels == level][: decoding["topk_candidates"]] for level in range(len(anchors))]
rows, classes = rows[np.concatenate(best)], classes[np.concatenate(best)]
scores, low, high = scores[rows, classes], *np.split(np.concatenate(anchors)[rows], 2, axis=1)
shift, growth = np.split(deltas[rows] / decoding["box_weights"], 2, axis=1)
centres = (low + high) / 2 + shift * (high - low)
halves = (high - low) / 2 * np.exp(np.minimum(growth, np.log(1000 / 16)))
boxes = np.concatenate([centres - halves, centres + halves], axis=1)
if decoding["clip_before_nms"]:
    boxes = np.clip(boxes, 0, (width, height, width, height))
areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def overlaps(i, others):
    """IoU of box ``i`` and others; 0 of boxes without an area."""
    low = np.maximum(boxes[others, :2], boxes[i, :2])
    high = np.minimum(boxes[others, 2:], boxes[i, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    return shared / np.maximum(areas[others] + areas[i] - shared, 1e-30)


# Non-maximum suppression in each class, best first.
kept = []
for i in np.argsort(-scores, kind="stable"):
    same = [k for k in kept if classes[k] == classes[i]]
    if np.all(overlaps(i, same) <= decoding["nms_thresh"]):
        kept.append(i)

for i in kept[: decoding["max_detections_per_image"]]:
    box = boxes[i]
    if decoding["score_voting"]:  # the mean of the boxes of its class that overlap it
        (same,) = np.nonzero(classes == classes[i])
        near = overlaps(i, same)
        weights = scores[same] * np.exp(-((1 - near) ** 2) / 0.025) * (near > 0.01)
        box = weights @ boxes[same] / weights.sum() if weights.any() else box
    show(box, scores[i], classes[i])
