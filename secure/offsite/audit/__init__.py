"""Audits by anybody who has the files: nothing here trusts the coordinator that wrote them."""
