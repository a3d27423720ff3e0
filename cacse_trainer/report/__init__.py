"""Reports as one HTML file each, with nothing to fetch: pages, line charts as inline SVG, and the page of a run."""

from cacse_trainer.report.comparison import compare_runs
from cacse_trainer.report.curves import Series, line_chart
from cacse_trainer.report.page import Section, page
from cacse_trainer.report.training import loss_page, training_page

__all__ = ["Section", "Series", "compare_runs", "line_chart", "loss_page", "page", "training_page"]
