"""The table of attacks, row by row: which tests stand behind each, and how they end."""
