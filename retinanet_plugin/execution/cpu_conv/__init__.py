"""Convolutions on a CPU by algorithms that are faster than PyTorch's, where nothing else changes.

``context.py`` chooses them, ``convolution.py`` makes them differentiable; ``winograd.py`` with
``tiles.py``, and ``pointwise.py``, are the algorithms.
"""

from .context import FastConvolutions, fast_convolutions

__all__ = ["FastConvolutions", "fast_convolutions"]
