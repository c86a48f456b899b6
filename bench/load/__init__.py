"""What is asked and when: decided before a run from a seed, without any I/O but reading traces."""
