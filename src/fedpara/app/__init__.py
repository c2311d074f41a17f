"""What a person types, from the command line to a run: composed, built, run, resumed, swept."""
