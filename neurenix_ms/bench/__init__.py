"""Compare time, memory and FLOPs of modules: in scripts, in test suites, and as reports."""

from neurenix_ms.bench.compared import Compared, compare
from neurenix_ms.bench.predicting import MemoryPrediction, predict_memory
from neurenix_ms.bench.profiling import MemoryProfile, profile_memory

__all__ = [
    "Compared",
    "MemoryPrediction",
    "MemoryProfile",
    "compare",
    "predict_memory",
    "profile_memory",
]
