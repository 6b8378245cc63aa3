"""What memory building an emulator takes: `python -m benchmarks.emulator_build --method width_prune`.

A random Llama in bf16 of about `--parameters` parameters is made in place, one tensor at a time,
and compressed by the real `build_emulator`, calibration pass included, between 2 + 2 slots. Every
way is a process of its own; its figure is the peak of all of that process's memory (VmHWM: model,
emulator, activations, and the 0.3 to 0.4 GB that Python with torch and transformers take before
anything is loaded).

Baseline: `kept`, which leaves the full model as it is, so that both exist at the end. `consumed` is
what `coordinator emulate` does: blocks of the full model go as the emulator takes them over.

Prints one JSON line per process and a summary:
    {"what": "kept" | "consumed", "model_mb": m, "emulator_mb": e, "start_mb": s, "peak_mb": p,
     "ratio": p / m, "seconds": s, "progress": times it was reported, ...}
    {"what": "summary", "method": ..., "kept_ratio": x, "consumed_ratio": y, "limit": 1.3}
"""
