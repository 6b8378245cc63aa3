"""Which emulator is worth shipping: `python -m benchmarks.emulators --tasks arc_easy,piqa --seeds 3`.

SmolLM2-135M and the official splits of ARC-Easy and PIQA. Every configuration (a row of `rows.toml`)
builds an emulator, writes the bundle that an edge would fetch, loads it as an edge would, and tunes
the adapter with the edge's own code on the training split. Measured on questions of the test split:

    full zero-shot       the owner's model, untouched
    upper bound          the same adapter tuned inside the full model, at its own learning rate
    emulator zero-shot   what the data owners are sent
    emulator tuned       what they could use for themselves
    plug-in              the full model with the adapter that was tuned in the emulator
    healed               the emulator after LoRA on public text: what a thief makes of it

    recovery = (plug-in - full zero-shot) / (upper bound - full zero-shot)
    gap      = plug-in - emulator tuned
    skill    = (acc - chance) / (full zero-shot's acc - chance)

and, as a generative measure, the perplexity of held-out texts of the tuned domain, question and right
answer as plain text (`text_perplexity`), and of the right answer alone given the question
(`answer_perplexity`).

A seed decides the order of the training examples and which test questions are asked; the splits
never change. Learning rates are chosen on questions that no test asks, with seed 0, once for each row
and task, from the grid in `settings.py`; the upper bound chooses from a longer one.

Everything that was measured is appended at once to `records.jsonl` in the folder of --out and not
measured again: a killed run goes on where it was. Prints JSON lines:

    {"what": "seed", "row": ..., "task": ..., "seed": n, "plug_in": ..., ...}
    {"what": "summary", "row": ..., "task": ..., "plug_in": [mean, standard error over seeds], ...}
    {"what": "refused", "row": ..., "reason": ...}    a method cannot do this
"""
