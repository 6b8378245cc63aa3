"""The release bundle: written and signed by the owner, verified whole by an edge before use."""
