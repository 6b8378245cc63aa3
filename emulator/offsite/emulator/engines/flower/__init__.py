"""Stock Flower as an engine: its commands as children of ours, its tasks done by installed code."""
