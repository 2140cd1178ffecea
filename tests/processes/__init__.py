"""What takes several real processes, of which some are killed."""
