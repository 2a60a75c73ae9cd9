"""Weights of other programs as weights and configs of this package, a file for each format."""

from .mmdetection_retinanet import from_mmdetection
from .resnet_classifier import from_classifier
from .torchvision_retinanet import from_torchvision
from .translated import Translated, write_model

FORMATS = {
    "torchvision": from_torchvision,
    "mmdetection": from_mmdetection,
    "backbone": from_classifier,
}

__all__ = ["FORMATS", "Translated", "write_model"]
