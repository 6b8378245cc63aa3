"""Generated wire types of the protocol, version 1. Regenerate with `python protos/generate.py`."""
