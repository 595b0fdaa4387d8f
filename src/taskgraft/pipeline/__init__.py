"""An extension from request to published bundle: open, train, measure, write."""
