"""The network and everything that is numbers. Empty on purpose: importing it imports no torch."""
