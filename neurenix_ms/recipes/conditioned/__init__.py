"""Compare ways in which a known parameter enters a network."""
