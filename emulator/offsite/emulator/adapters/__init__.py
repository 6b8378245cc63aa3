"""What trains inside the slots, and how it comes back into the full model."""
