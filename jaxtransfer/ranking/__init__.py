"""Scores that rank source models for a target task without training."""

from jaxtransfer.ranking.agreement import kendall as kendall
from jaxtransfer.ranking.agreement import weighted_kendall as weighted_kendall
from jaxtransfer.ranking.gbc import gbc as gbc
from jaxtransfer.ranking.hscore import h_score as h_score
from jaxtransfer.ranking.hscore import regularised_h_score as regularised_h_score
from jaxtransfer.ranking.leep import leep as leep
from jaxtransfer.ranking.leep import nce as nce
from jaxtransfer.ranking.logme import logme as logme
from jaxtransfer.ranking.n_leep import n_leep as n_leep
from jaxtransfer.ranking.parc import parc as parc
from jaxtransfer.ranking.transrate import transrate as transrate
