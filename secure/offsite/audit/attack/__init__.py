"""What the model's owner could learn about single rows from an adapter, measured before it leaves."""
