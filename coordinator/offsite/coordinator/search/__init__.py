"""The owner's search for the emulator to release (`coordinator emulate --auto`)."""
