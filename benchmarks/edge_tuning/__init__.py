"""What tuning on an edge takes, against tuning the full model: `python -m benchmarks.edge_tuning`.

Four ways to tune on the same batch, each in a process of its own, one after the other:

    full           every parameter of the full model: bf16 weights, fp32 masters, gradients, moments
    full_lora      LoRA on every linear layer of the full model
    offsite        the emulator of a bundle, whole blocks in the slots, by the edge's own loop
    offsite_lora   the same with LoRA in the slots, of which B alone trains

Memory is the peak of the process above what it held before it loaded a model; throughput is the
tokens of a step by the median time of a step, the first left out. The batch is the paper's: one row
of 512 tokens, every one of them learnt. Tokens are random: nothing here depends on what they say.

The paper (arXiv 2302.04870, GPT2-XL on one GPU) gives 6.5 times the throughput and 5.6 times less
memory than full fine-tuning, and 3.1 and 2.4 against LoRA on the full model. Its full fine-tuning
took 23 bytes a parameter, `full` here takes 18, so the first pair of ratios is a harder one.

Prints one JSON line per process and a summary with the ratios:
    {"what": "full" | ..., "peak_mb": above the start, "tokens_per_s": ..., "step_s": ...}
    {"what": "summary", "offsite_memory_vs_full": x, "offsite_throughput_vs_full": x, ...}
"""
