"""Between a model and a matrix: the Matcher of the front door, scoring of a split, attention of a pair."""
