"""The private names of other libraries that this package uses, each in one place, with a note that says why.

`tests/test_private_names.py` lists them, and fails if one is used elsewhere or is not on the list. Import the modules
one by one where they are needed; this package itself imports nothing.
"""
