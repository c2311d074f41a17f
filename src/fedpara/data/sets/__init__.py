"""Data sets: one a file, each a function that returns a `DataSet`."""
