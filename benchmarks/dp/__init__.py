"""What a private step takes, against one that is not: `python -m benchmarks.dp`.

Seven ways from the same rows to the gradient of a step:

    non_private    the loss of the batch, backwards
    engine         one backward pass with the gradients of single units            ours
    one_by_one     a pass for each unit                                            ours
    vmap           `torch.func`'s vmap over the whole model                        ours
    opacus         Opacus' hooks with all checks of our backend                    ours
    opacus_hooks   Opacus' hooks, clipped and added up as its optimiser does it
    opacus_ghost   Opacus' ghost clipping: two backward passes

on three adapters of random Llamas: LoRA of rank 8 on the queries and values of all blocks, on all
linears, and two whole blocks at either end.

Time is that of the processor, of one thread: wall time of a shared machine says little. The ways take
turns, a round is one batch of each, and a ratio is the median over rounds of a way's time by that
of `non_private` in the same round, with the quartiles beside it. Memory is the peak of a process of
its own above what the loaded model took, over two whole steps: gradients of several batches, noise,
AdamW. A step of a campaign is many batches and one noise, so `step_ratio` puts the parts together for
a logical batch of `--logical` rows.

Goals: the engine at most 1.05 times the time of `non_private` for LoRA and 1.10 for blocks, and 1.05
times its memory. Prints one JSON line a figure; the last is a summary:

    {"what": "time", "adapter": ..., "way": ..., "batch_s": ..., "ratio": ..., "low", "high"}
    {"what": "memory", "adapter": ..., "way": ..., "peak_mb": ..., "ratio": ...}
    {"what": "noise", "adapter": ..., "noise_s": ..., "adamw_s": ..., "step_ratio": ...}
    {"what": "summary", "lora_qv_time": ..., "lora_qv_memory": ..., ...}

`--quick` takes smaller models, on which what does not depend on size weighs more, for three minutes
at most.
"""
