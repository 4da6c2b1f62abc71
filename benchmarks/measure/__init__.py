"""Measurements of time and memory, one module each; ``efficiency.py`` runs them."""
