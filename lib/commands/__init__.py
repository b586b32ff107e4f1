"""The flags of the scripts, and what train.py, eval.py and eval_ensemble.py do with them."""
