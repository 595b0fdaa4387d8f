"""Classifiers: backbone, heads, what stands beside the backbone, and what they predict."""
