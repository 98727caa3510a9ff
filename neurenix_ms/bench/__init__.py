"""Time, memory and operations of modules side by side: in scripts, in test suites, and as reports."""

from neurenix_ms.bench.compared import Compared, compare

__all__ = ["Compared", "compare"]
