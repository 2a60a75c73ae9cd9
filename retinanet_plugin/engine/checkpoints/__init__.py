"""Checkpoints of a training: written whole, found again, and gone on from."""
