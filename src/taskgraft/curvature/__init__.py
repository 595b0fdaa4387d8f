"""How much each parameter matters: the diagonal Fisher information and the sensitivity of the outputs.

`fisher` measures both from per-sample gradients. It asks `probe` which parameters have a rule, records a forward pass
with `tape`, and adds up per-sample gradients by `layer_rules` and `per_sample_sums`; `fallback` handles the other
parameters with torch.func, and `labels` says over which labels the expectation is taken.
"""
