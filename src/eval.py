"""Test a run's model: `python src/eval.py run=logs/train/runs/<run>`; the program is `fedpara.app.evaluation`."""

import logging

from fedpara.app.evaluation import main

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
