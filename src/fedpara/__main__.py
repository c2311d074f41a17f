"""`python -m fedpara` is the command `fedpara`."""

from fedpara.app.programs import main

if __name__ == "__main__":
    main()
