"""Keys, signed acts, quorums, the signed policy, evidence, attestation and the audit chain."""
