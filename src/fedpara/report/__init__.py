"""Reports: runs grouped over seeds, compared with the paper's figures and tables, on one page."""

from fedpara.report.figures import draw
from fedpara.report.page import write_report
from fedpara.report.paper import Comparison, compare
from fedpara.report.settings import Setting, common_target, settings

__all__ = ["Comparison", "Setting", "common_target", "compare", "draw", "settings", "write_report"]
