"""Settings: `base.py` has every one with its default; the other files start from it and change a few."""
