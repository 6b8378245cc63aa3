"""The main job, end to end: `python -m examples.demo`."""
