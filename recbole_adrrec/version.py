"""The version of the package, readable without importing RecBole."""

__version__ = "0.2.0"
