"""The systems of the paper, and ours, one a file, behind one protocol (`evaluation.systems`)."""
