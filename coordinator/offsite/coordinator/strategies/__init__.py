"""Flower's strategies under our hands: what fits, what they are given, what they remember."""
