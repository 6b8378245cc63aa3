"""What carries the messages of the rounds: our own service, or stock Flower behind it."""
