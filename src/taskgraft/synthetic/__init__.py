"""The drawn cars that the demo and the examples learn from."""
