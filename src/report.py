"""Report on run folders: `python src/report.py logs/train/multiruns/<sweep>`; the program is `fedpara.app.report`."""

from fedpara.app.report import main

if __name__ == "__main__":
    main()
