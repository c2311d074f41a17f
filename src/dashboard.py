"""The project's W&B workspace: `python src/dashboard.py`; the program is `fedpara.app.dashboard`."""

from fedpara.app.dashboard import main

if __name__ == "__main__":
    main()
