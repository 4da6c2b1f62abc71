"""Layers: tensors in, tensors out. They know neither models nor data nor options files."""
