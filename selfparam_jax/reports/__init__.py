"""Records of finished jobs and comparisons as tables and pictures."""
