"""The attack on an adapter before it leaves the data owner's machine, and what is kept for it."""
