"""Between a model and a matrix: the input of its encoders, scoring of a split, attention of a pair."""
