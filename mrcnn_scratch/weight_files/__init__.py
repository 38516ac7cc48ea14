"""Weights of other code bases: read safely, identified, and loaded by name. The public names are in weights.py."""
