"""Everything that reaches into RecBole: registration, patches, training, checkpoints, processes."""
