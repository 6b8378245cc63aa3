"""Triton operators with a plain-torch reference each. Empty until the serving milestone."""
