"""Models: each reads its options and joins layers."""
