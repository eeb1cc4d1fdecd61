"""The version of the package, on its own so that nothing needs the root package for it."""

__version__ = "0.1.0"
