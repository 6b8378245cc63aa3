"""What each verb of `edge-client` does."""
