"""The systems a benchmark compares, each started, asked and stopped in the same way."""
