"""Whom a round asks and when it begins, and what the owner orders while a campaign runs."""
