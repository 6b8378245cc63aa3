"""Differential privacy: mechanisms, accounting, ledger, and the randomness of private steps."""
