"""The data owner's side: join, verify, tune locally, return a protected update."""
