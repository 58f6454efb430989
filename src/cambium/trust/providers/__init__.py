"""Attesters and their verifiers, one file each; `attestation.PROFILES` lists their labels."""
