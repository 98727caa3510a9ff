"""Train and predict in exact tiles on several processes, and compare with one process."""
