"""Scores that rank source models for a target task without training."""

from jaxtransfer.ranking.logme import logme as logme
