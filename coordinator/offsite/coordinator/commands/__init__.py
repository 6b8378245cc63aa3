"""What each verb of `coordinator` does."""
