"""The documentation: its tables, the pages that are made at build, and the checks of its links and commands."""
