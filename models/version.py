"""The version of the program and of its library."""

__version__ = "0.1.0"
