"""Generated inputs to the HTTP service and to the readers of checkpoints; ``fuzz.py`` runs them."""
