"""Detect with a file of ``export onnx``, without PyTorch and Detectron2.

python examples/onnx_predict.py model.onnx image.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
notes = session.get_modelmeta().custom_metadata_map
notes = {key: json.loads(text) for key, text in notes.items()}
preprocessing, decoding = notes["preprocessing"], notes["decoding"]

# The image, resized and in the model's order of colours; at the right and below, the mean colour.
picture = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
short, long = sorted(picture.size)
scale = min(preprocessing["min_size_test"] / short, preprocessing["max_size_test"] / long)
width, height = (int(side * scale + 0.5) for side in picture.size)
pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
pixels = pixels[:, :, ::-1] if preprocessing["format"] == "BGR" else pixels
divisor = notes["padding"]["divisor"]
images = np.empty((1, 3, *(-(-side // divisor) * divisor for side in (height, width))), np.float32)
images[:] = np.reshape(preprocessing["pixel_mean"], (3, 1, 1))
images[0, :, :height, :width] = pixels.transpose(2, 0, 1)
logits, deltas = (output[0] for output in session.run(None, {"images": images})[:2])

# Anchors (R, 4): levels one after the other, in each by row, column and kind.
anchors = []
for level in notes["anchors"]:
    sides = (-(-side // level["stride"]) for side in images.shape[2:])
    y, x = ((np.arange(side) + level["offset"]) * level["stride"] for side in sides)
    x, y = np.meshgrid(x, y)
    centres = np.stack([x, y, x, y], axis=-1)[:, :, None]
    anchors.append((centres + np.array(level["boxes"])).reshape(-1, 4))

# What scores above the threshold, as boxes (x1, y1, x2, y2) in pixels of the file.
scores = 1 / (1 + np.exp(-logits))
rows, classes = np.nonzero(scores > decoding["score_thresh"])
scores = scores[rows, classes]
x1, y1, x2, y2 = np.concatenate(anchors)[rows].T
dx, dy, dw, dh = deltas[rows].T / np.reshape(decoding["box_weights"], (4, 1))
w, h = ((x2 - x1) * np.exp(np.minimum(dw, 4.135)), (y2 - y1) * np.exp(np.minimum(dh, 4.135)))
x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)

# Non-maximum suppression in each class.
order, kept = np.argsort(-scores, kind="stable"), []
while len(order) and len(kept) < decoding["max_detections_per_image"]:
    best, order = order[0], order[1:]
    kept.append(best)
    low, high = (
        np.maximum(boxes[order, :2], boxes[best, :2]),
        np.minimum(boxes[order, 2:], boxes[best, 2:]),
    )
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    overlaps = shared / (areas[order] + areas[best] - shared) > decoding["nms_thresh"]
    order = order[~(overlaps & (classes[order] == classes[best]))]

for i in kept:
    box = boxes[i] * np.tile(np.divide(picture.size, (width, height)), 2)
    box = np.clip(box, 0, np.tile(picture.size, 2))
    print(notes["class_names"][classes[i]], f"{scores[i]:.4f}", *(f"{side:.2f}" for side in box))
