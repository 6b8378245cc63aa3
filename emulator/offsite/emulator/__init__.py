"""Emulators of a decoder: find its blocks, compress the middle, adapt the ends, bundle it all."""
