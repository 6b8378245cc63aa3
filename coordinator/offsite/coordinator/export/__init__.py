"""Taking the result away: adapter tensors, a merged checkpoint, a PEFT adapter."""
