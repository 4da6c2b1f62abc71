"""Default options of each model."""
