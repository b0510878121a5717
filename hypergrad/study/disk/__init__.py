"""A study on disk: files, folder, journal, checkpoints and records."""
