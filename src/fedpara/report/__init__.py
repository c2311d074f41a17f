"""Reports: runs grouped over seeds, compared with the paper's figures and tables, on one page."""

from fedpara.report.differences import Difference, difference, differences
from fedpara.report.figures import Chart, charts, draw
from fedpara.report.page import difference_table, write_report
from fedpara.report.paper import Comparison, compare
from fedpara.report.settings import Setting, common_target, settings
from fedpara.report.sweeps import differences_of_sweeps

__all__ = [
    "Chart", "Comparison", "Difference", "Setting", "charts", "common_target", "compare", "difference",
    "difference_table", "differences", "differences_of_sweeps", "draw", "settings", "write_report",
]  # fmt: skip
