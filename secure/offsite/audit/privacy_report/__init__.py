"""The report for a data protection officer: one HTML page and one JSON document, from the same facts."""
