"""After training: detections in images, and the model in other formats."""

from .predictor import Predictor

__all__ = ["Predictor"]
