"""Sampling and noise of private steps, from keystreams with entropy of the operating system."""
