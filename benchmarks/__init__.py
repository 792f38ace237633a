"""Time and memory of every norm, side by side with other libraries': `python -m benchmarks --help`."""
