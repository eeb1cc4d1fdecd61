"""Benchmarks: numbers with command, commit, versions, hardware and seeds."""
