"""The coordinator's side of stock Flower: a SuperLink on loopback and our way to and from it."""
