"""Audits the harness's own client: against a stub whose delays are known, and beside its peers."""
