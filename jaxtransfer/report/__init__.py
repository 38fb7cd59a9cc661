"""Comparisons as plots and pages."""

from jaxtransfer.report.comparison import write_comparison as write_comparison
