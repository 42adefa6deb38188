"""Calibration."""

from jaxnlme.calibration.parameters import ParameterDef, ParameterSet
