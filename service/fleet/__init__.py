"""What happens to devices: check-in, plan, order, report, verdict; and their rollouts."""
