"""Time, memory and operations: reports of runs, comparisons, tables of networks."""
