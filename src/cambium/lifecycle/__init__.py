"""Proposal, gates, approvals, merge and rollback as pure decisions: values in, values out."""
