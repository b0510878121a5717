"""Reports: results read back, figures and the page."""
