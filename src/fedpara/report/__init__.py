"""Reports: runs grouped over seeds, compared with the paper's figures and tables, on one page."""

from fedpara.report.differences import Difference, difference, differences
from fedpara.report.figures import draw
from fedpara.report.page import difference_table, write_report
from fedpara.report.paper import Comparison, compare
from fedpara.report.settings import Setting, common_target, settings

__all__ = [
    "Comparison", "Difference", "Setting", "common_target", "compare", "difference", "difference_table", "differences",
    "draw", "settings", "write_report",
]  # fmt: skip
