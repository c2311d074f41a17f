"""From the command line to a run: compose the configuration, build, run, resume, sweep."""
