"""Conversion, recommendations, explanations, and the check of the environment."""
