"""A hundred data owners on ARC-Easy, divided one-sidedly: which strategy does best round by round?

    python -m benchmarks.simulation --quick
    python -m benchmarks.simulation --plot docs/simulation.svg

The command itself, `coordinator simulate`, on a release of SmolLM2-135M-Instruct with LoRA in its
slots: 100 clients with the training questions divided by the place of the right answer (Dirichlet,
alpha 0.3), ten of them in a round, a tenth leaves in the course of it, a tenth are slow machines;
secure sums, message for message. The gate is ARC-Easy's validation split. The release is made once
and kept; a simulation is deterministic by its seed but for the real seconds, which are this
machine's.

Prints a JSON line for each strategy and round, and a summary as the last line. `--quick`: one
round of eight clients and few questions, to see that it runs; its gates say nothing."""
