"""Attesters: one file each; what their roots can vouch for stands in `attestation.PROFILES`."""
