"""Identities, directory, signing and sealing as a core without I/O."""
