"""Secure aggregation (OTSA/1): a coordinator learns the sum of a cohort and nothing else."""
