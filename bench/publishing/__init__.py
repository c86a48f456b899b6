"""README's figures, written from kept results and from nothing else, so they cannot drift."""
