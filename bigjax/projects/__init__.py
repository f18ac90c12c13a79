"""Worlds of papers, one folder each: they use the rooms of bigjax as a user's own code does."""
