"""What an edge shows of its own mechanism before the first private step."""
