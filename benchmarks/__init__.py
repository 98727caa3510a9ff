"""How fast and how large: one file per question, run with `make bench`."""
