"""Time, memory and operations of modules side by side: the fixture `measure` and its reports."""
