"""Files of weights: read without running anything, what they say, and how they fit a model."""
