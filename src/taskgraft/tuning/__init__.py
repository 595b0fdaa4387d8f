"""Hyperparameter search: one coordinator samples trials with Optuna, and an executor trains them.

`search_config` declares the settings and `space` what is searched; `sampler` and `halving` decide which trials are
trained and how far; `study` stores them, `trial` trains one, `executor` says where; `coordinator` runs the search and
`outcome` selects the models.
"""
