"""A model behind HTTP: the Open Inference Protocol, a plain /predict, metrics, and a page for people."""
