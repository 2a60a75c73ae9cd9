"""Matchers: which anchors are foreground, for which box; in the registry the config chooses from.

``iou.py`` has the registry and the paper's matcher, ``atss.py`` another; ``blocks.py`` finds the
IoUs that matter without the whole matrix, ``dense.py`` computes all of them where shapes have to
be fixed; ``targets.py`` is what matchers share.
"""

from .atss import ATSSMatcher
from .iou import MATCHER_REGISTRY, IoUMatcher
from .targets import padded_truth

__all__ = ["MATCHER_REGISTRY", "ATSSMatcher", "IoUMatcher", "padded_truth"]
