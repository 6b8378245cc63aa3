"""Identities, directory, signing, sealing and secure aggregation as a core without I/O."""
