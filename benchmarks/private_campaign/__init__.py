"""What privacy costs a campaign: two edges on ARC-Easy, without it and within epsilon 8 and 3.

    python -m benchmarks.private_campaign --seeds 3 --epsilons none,8,3

Real processes, as `make demo`: for each seed one release with LoRA in the slots, then a campaign for each
epsilon on a copy of the owner's state, evaluated on test questions. A seed is another split of the
questions between the edges; noise is new in every run. Each edge's ledger is audited, and what it spent
stands in the line. Every campaign is on disk when it ends, so a run that was stopped goes on.

`--set tuning.batch_examples=256` changes a setting of the coordinator, which the line then names: what was
tried to narrow the gap, in `docs/privacy.md`, was measured so.

Prints a JSON line a campaign and a summary for each epsilon with standard errors over seeds.
"""
