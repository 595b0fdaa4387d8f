"""Records and predictions turned into pages, tables, figures and five lines for the terminal.

No torch in here, and no matplotlib before something is drawn.
"""

from taskgraft.report.card import model_card
from taskgraft.report.check_page import render_check, table_check
from taskgraft.report.comparison_page import render_comparison
from taskgraft.report.distribution_page import render_shares, table_shares, write_shares
from taskgraft.report.evaluation_page import render_evaluation
from taskgraft.report.galleries import stored
from taskgraft.report.history import write_figures
from taskgraft.report.page import write_page
from taskgraft.report.run_page import render_run
from taskgraft.report.search_page import render_search, search_markdown, verdict_search, write_search
from taskgraft.report.summary import table_markdown
from taskgraft.report.verdict import verdict_comparison, verdict_run

__all__ = [
    "model_card",
    "render_check",
    "render_comparison",
    "render_evaluation",
    "render_run",
    "render_search",
    "render_shares",
    "search_markdown",
    "stored",
    "table_check",
    "table_markdown",
    "table_shares",
    "verdict_comparison",
    "verdict_run",
    "verdict_search",
    "write_figures",
    "write_page",
    "write_search",
    "write_shares",
]
