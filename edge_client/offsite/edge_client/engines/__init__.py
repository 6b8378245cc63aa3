"""What carries the messages of the rounds, as an edge sees it."""
