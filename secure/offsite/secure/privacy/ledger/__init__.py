"""The privacy ledger: what a data owner's records were used for, as entries nobody can rewrite."""
