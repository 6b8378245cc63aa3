"""The baseline as a Flower app."""
