"""From records to tables, plots and pages; needs no model and no torch."""
