"""Train U-Nets to predict drifting density for three days."""
