"""How long storage takes: the source's formulas, a calibrated model, and a simulated cluster."""
