"""Differential privacy on the data owner's machine: its limit, its ledger, and tuning within both."""
