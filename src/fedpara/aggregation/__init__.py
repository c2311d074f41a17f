"""Robust aggregation: what a round's uploads become, so that a few clients cannot send the model anywhere they like."""

from fedpara.aggregation.coordinatewise import Median, TrimmedMean
from fedpara.aggregation.geometric_median import GeometricMedian
from fedpara.aggregation.multi_krum import MultiKrum
from fedpara.aggregation.norm_bounding import NormBounding
from fedpara.aggregation.rule import Rule

__all__ = ["GeometricMedian", "Median", "MultiKrum", "NormBounding", "Rule", "TrimmedMean"]
