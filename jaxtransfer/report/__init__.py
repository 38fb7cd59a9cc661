"""Comparisons as plots and pages."""

from jaxtransfer.report.comparison import write_comparison as write_comparison
from jaxtransfer.report.find_lr import plot_learning_rates as plot_learning_rates
from jaxtransfer.report.probes import plot_few_shot as plot_few_shot
from jaxtransfer.report.probes import plot_stages as plot_stages
from jaxtransfer.report.probes import write_probe_report as write_probe_report
