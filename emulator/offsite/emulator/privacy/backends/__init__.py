"""Ways to the clipped sum of per-example gradients; one protocol, one figure."""
