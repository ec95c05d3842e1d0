"""What happens to devices: check-in, plan, order, report, and what of all that is kept."""
