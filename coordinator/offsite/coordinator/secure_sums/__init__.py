"""The coordinator's shell around secure aggregation: from advertisements to a cohort's mean."""
