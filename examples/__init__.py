"""Programs that show Offsite at work; the tests run them."""
