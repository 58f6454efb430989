"""Attesters and their verifiers, one file each; `attestation.HARDWARE` lists their labels."""
