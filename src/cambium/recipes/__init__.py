"""Whole configurations as functions: each returns one full config and says what it is for."""
