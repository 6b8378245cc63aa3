"""Differential privacy of what an edge trains: gradients of single examples, noise, proof."""
