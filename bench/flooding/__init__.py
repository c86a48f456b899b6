"""What a tenant that floods the caches takes from one that does not."""
