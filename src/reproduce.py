"""Run the paper's experiments as a queue: `python src/reproduce.py --list`; the program is `fedpara.app.reproduce`."""

from fedpara.app.reproduce import main

if __name__ == "__main__":
    main()
