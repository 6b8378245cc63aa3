"""Low-bit packing of the compressed middle for shipping; tuning computes with what it unpacks to."""
