"""What the attack on an adapter finds, by heart and at epsilon 4: `python -m benchmarks.attack`.

SmolLM2-135M with two whole blocks at either end as the adapter, the middle thinned out, and rows of
ARC-Easy. Half of the rows are held out at random, secrets are planted among the others, and two
adapters are tuned on them, one after the other, from the same values:

    by_heart    without privacy, many passes over few rows: overfitted on purpose
    private     with the product's private steps, at `--epsilon` for all of them

Both are attacked as an edge attacks what it is about to return. Goals: the attack on the first has an
advantage that is surely above 0, and is held back; that on the second is not beyond chance at 95 %, its
interval holds 0. Prints JSON lines; the last is a summary:

    {"what": "attack", "adapter": ..., "verdict": ..., "advantage", "low", "high", "auc", "p_value",
     "tpr_at_low_fpr", "exposure_bits", "exposure_p", "held_out_before", "held_out_after", "tuning_s"}
    {"what": "summary", "goals_met": "2 of 2", ...}

The losses of held-out rows, nats per token, tell whether anything was learnt that others share.
`--quick` takes fewer rows and steps: about five minutes on one core.
"""
