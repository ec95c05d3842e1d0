"""The HTTP edge, split by who calls: release managers, operators, devices. Routes are short."""
