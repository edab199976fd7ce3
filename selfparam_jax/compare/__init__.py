"""Models of one base side by side: what was written into each, and how their distributions and answers differ."""
