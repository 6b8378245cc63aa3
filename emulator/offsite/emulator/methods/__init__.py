"""How the middle of a model is compressed into an emulator."""
