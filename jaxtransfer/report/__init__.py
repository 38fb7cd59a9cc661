"""Comparisons as plots and pages."""

from jaxtransfer.report.comparison import write_comparison as write_comparison
from jaxtransfer.report.find_lr import plot_learning_rates as plot_learning_rates
from jaxtransfer.report.transferability import plot_transferability as plot_transferability
