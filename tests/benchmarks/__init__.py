"""Measures scoremean beside what people would use instead, and writes docs/performance.md: `python -m tests.benchmarks`."""
