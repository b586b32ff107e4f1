"""What train.py and eval.py do once their flags are understood. They import torch, for which no flag should wait."""
