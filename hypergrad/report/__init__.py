"""Reports: the study that a user holds, its results read back, its figures and its page."""
