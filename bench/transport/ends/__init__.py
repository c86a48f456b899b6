"""The two ends of every contender, each in its own process."""
