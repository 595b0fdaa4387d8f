"""A model behind HTTP: Open Inference Protocol V2, a plain /predict, Prometheus metrics, and a web page."""
