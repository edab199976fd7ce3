"""Fictional documents, general texts and questions, as data files."""
