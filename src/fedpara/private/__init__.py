"""The private names of other libraries that this package uses, each in one place, with a note that says why.

`tests/test_private_names.py` lists them: one that is used elsewhere, or is not on the list, fails. Modules here are
imported one by one, where they are needed: this package imports nothing by itself.
"""
