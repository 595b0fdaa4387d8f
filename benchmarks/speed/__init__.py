"""taskgraft and its peers, measured in one run, turn by turn: `make bench`, or `python -m benchmarks.speed`."""
