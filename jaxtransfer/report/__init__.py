"""Comparisons as plots and pages."""

from jaxtransfer.report.advice import write_advice as write_advice
from jaxtransfer.report.calibration import plot_reliability as plot_reliability
from jaxtransfer.report.comparison import write_comparison as write_comparison
from jaxtransfer.report.confusion import plot_confusion as plot_confusion
from jaxtransfer.report.confusion import plot_most_confused as plot_most_confused
from jaxtransfer.report.find_lr import plot_learning_rates as plot_learning_rates
from jaxtransfer.report.images import plot_grad_cam as plot_grad_cam
from jaxtransfer.report.images import plot_nearest_images as plot_nearest_images
from jaxtransfer.report.images import plot_top_losses as plot_top_losses
from jaxtransfer.report.interpretation import write_interpretation as write_interpretation
from jaxtransfer.report.page import Figure as Figure
from jaxtransfer.report.page import Heading as Heading
from jaxtransfer.report.page import Table as Table
from jaxtransfer.report.page import Text as Text
from jaxtransfer.report.page import png_bytes as png_bytes
from jaxtransfer.report.page import write_page as write_page
from jaxtransfer.report.probes import plot_few_shot as plot_few_shot
from jaxtransfer.report.probes import plot_stages as plot_stages
from jaxtransfer.report.probes import write_probe_report as write_probe_report
from jaxtransfer.report.ranking import write_ranking as write_ranking
from jaxtransfer.report.sweep import plot_sweep as plot_sweep
from jaxtransfer.report.sweep import write_sweep as write_sweep
from jaxtransfer.report.transferability import plot_transferability as plot_transferability
