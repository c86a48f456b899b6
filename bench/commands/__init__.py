"""``kvferry bench COMMAND``, one file each."""
