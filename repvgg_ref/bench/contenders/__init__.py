"""Who can be timed: one file for each, all seen through `base.Contender`."""
