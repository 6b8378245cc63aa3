"""Modules whose parameters train, each with a rule for the gradients of single rows."""
