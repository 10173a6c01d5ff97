"""One-shot accuracy, ours and others', on networks trained here: ``python -m tests.benchmarks.accuracy``."""
