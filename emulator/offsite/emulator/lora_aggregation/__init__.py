"""LoRA of many clients into one, where every client's factors are seen."""
