"""Show the progress of runs: `python src/status.py logs/`; the program is `fedpara.app.status`."""

from fedpara.app.status import main

if __name__ == "__main__":
    main()
