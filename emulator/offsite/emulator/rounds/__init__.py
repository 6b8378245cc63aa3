"""What both sides of a round agree on: plan, instruction, update and how messages become bytes."""
