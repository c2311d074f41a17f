"""Check a run against its log: `python src/audit.py run=logs/train/runs/<run>`; the program is `fedpara.app.audit`."""

import logging

from fedpara.app.audit import main

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
