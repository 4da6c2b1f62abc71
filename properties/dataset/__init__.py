"""Default options of each data set."""
