"""Checkpoints and weights: written whole, read without running anything, told how they fit."""
