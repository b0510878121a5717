"""Tasks: a problem with its space, horizon and test set, one a file."""
