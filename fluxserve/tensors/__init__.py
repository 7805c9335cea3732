"""Tensors as they are read, whatever file they lie in: readers, recipes, packed matrices. Knows no model."""
