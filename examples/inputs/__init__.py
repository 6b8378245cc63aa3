"""A real model and real questions out of two packages, for the demonstration and the benchmarks."""
