"""Search: what to try (`space`, `sampling`), how far (`halving`), who does it (`queue`), what to take (`choices`)."""
