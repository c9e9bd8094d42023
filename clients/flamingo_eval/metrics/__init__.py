"""Metrics, each in a file of its own, equal to the official tools'."""
