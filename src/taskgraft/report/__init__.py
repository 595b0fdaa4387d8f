"""Reports: results as HTML pages, figures, Markdown tables and a few lines for the terminal.

Nothing here needs torch; matplotlib and jinja2 are imported when something is drawn.
"""

from taskgraft.report.check_page import format_check, render_check
from taskgraft.report.comparison_page import (
    format_comparison_table,
    list_comparison_remarks,
    list_comparison_rows,
    render_comparison,
    write_comparison_report,
)
from taskgraft.report.comparison_summary import summarize_comparison
from taskgraft.report.distribution_page import format_distribution, render_distribution, write_distribution_figure
from taskgraft.report.evaluation_page import render_evaluation
from taskgraft.report.page import write_page
from taskgraft.report.run_page import format_model_card, render_run
from taskgraft.report.run_summary import describe_balance, learned_name, summarize_run
from taskgraft.report.search_page import format_search_table, render_search, summarize_search, write_search_report
from taskgraft.report.thumbnails import ThumbnailMaker, encode_thumbnail, load_thumbnails

__all__ = [
    "ThumbnailMaker",
    "describe_balance",
    "encode_thumbnail",
    "format_check",
    "format_comparison_table",
    "format_distribution",
    "format_model_card",
    "format_search_table",
    "learned_name",
    "list_comparison_remarks",
    "list_comparison_rows",
    "load_thumbnails",
    "render_check",
    "render_comparison",
    "render_distribution",
    "render_evaluation",
    "render_run",
    "render_search",
    "summarize_comparison",
    "summarize_run",
    "summarize_search",
    "write_comparison_report",
    "write_distribution_figure",
    "write_page",
    "write_search_report",
]
