"""Annotation files and folders, and what they mean."""
