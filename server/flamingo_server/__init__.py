"""Flamingo Server: the engine and its HTTP face. Light on purpose: decoding workers import it."""

__version__ = "0.1.0"
