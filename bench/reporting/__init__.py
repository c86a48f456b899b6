"""Reports: what a benchmark command found, as a page, as terminal text, and as files."""
