"""Comparisons as plots and pages."""

from jaxtransfer.report.comparison import write_comparison as write_comparison
from jaxtransfer.report.find_lr import plot_learning_rates as plot_learning_rates
from jaxtransfer.report.page import Figure as Figure
from jaxtransfer.report.page import Heading as Heading
from jaxtransfer.report.page import Table as Table
from jaxtransfer.report.page import Text as Text
from jaxtransfer.report.page import png_bytes as png_bytes
from jaxtransfer.report.page import write_page as write_page
from jaxtransfer.report.sweep import plot_sweep as plot_sweep
from jaxtransfer.report.sweep import write_sweep as write_sweep
