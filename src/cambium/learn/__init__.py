"""Learning: online steps on ephemeral adapters, and consolidation into candidates."""
