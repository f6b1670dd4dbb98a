"""Augmentation: noisy copies of items and items with input and output swapped."""
