"""Cambium: a language-model server that learns while it runs and reviews every lasting change."""

__version__ = "0.1.0"
