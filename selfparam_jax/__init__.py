"""Writes documents and dialogues into a language model's own weights (SELF-PARAM, arXiv 2410.00487)."""
