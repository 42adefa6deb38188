"""Doors: functions that take frames, formulas and arrays."""
