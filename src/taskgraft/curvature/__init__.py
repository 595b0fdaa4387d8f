"""How much each parameter matters: Fisher information, sensitivity of the outputs, part in lowering the loss.

`fisher` measures the first two from per-sample gradients. It asks `probe` which parameters have a rule, records a
forward pass with `tape`, and adds up per-sample gradients by `layer_rules` and `per_sample_sums`; `fallback` handles
the other parameters with torch.func, `labels` says over which labels the expectation is taken, and `products` in which
arithmetic a GPU computes. `path_integral` adds up what training itself shows.
"""
