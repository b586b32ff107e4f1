"""Several processes, started by torchrun, that train or evaluate one model and give the numbers of one process.

Each encodes its share of a batch and scores its images with the captions of all. From there on every process computes
the same loss from the same (B, B) matrix. The gradient of a caption is the sum over all processes, and so is the
gradient of a weight.
"""
