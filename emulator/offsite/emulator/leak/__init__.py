"""What somebody keeps who has the emulator and does not play by the rules, in numbers."""
