"""The tables of the coordinator's database, one module per subject, typed rows only."""
