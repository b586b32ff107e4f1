"""The console of every script: its parser, its frame of one-line errors, its screen."""
