"""The clipped sum of per-example gradients in one backward pass, or an error; never a guess."""
