"""Default options as YAML: overall, per model and per data set."""
